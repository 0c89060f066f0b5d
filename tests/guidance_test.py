"""Denoisers made of denoisers: exact values, counted calls, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import guidance, precond, rng
from fastdiff_jax.networks import mlp
from fastdiff_jax.solvers import driver, multistep, named, sampling, schedules
from fastdiff_jax.types import Model, expand

X = jnp.array([[1.0, -2.0], [0.5, 4.0]])
OPEN = schedules.polynomial(0.1, 10.0, zero=False)


def gaussian(mean):
    """The denoiser of N(mean, 1)."""

    def denoise(x, sigma):
        noise = expand(sigma, x) ** 2
        return (x + noise * mean) / (1 + noise)

    return denoise


def test_guidance_extrapolates():
    """Two Gaussians of one width: guidance by s has its mean at m_u + s (m_c - m_u)."""
    aimed, base = gaussian(1.0), gaussian(-1.0)
    guided = guidance.guided(aimed, base, 3.0)
    chex.assert_trees_all_close(guided(X, 2.0), gaussian(5.0)(X, 2.0), rtol=1e-5)
    assert guidance.guided(aimed, base, 1.0) is aimed
    assert guidance.guided(aimed, base, 0.0) is base


def test_an_interval_acts_inside_only():
    aimed, base = gaussian(1.0), gaussian(-1.0)
    denoise = guidance.interval(aimed, base, 3.0, 0.5, 2.0)
    for sigma, mean in ((0.5, 1.0), (0.6, 5.0), (2.0, 5.0), (2.1, 1.0)):
        chex.assert_trees_all_close(denoise(X, sigma), gaussian(mean)(X, sigma), atol=1e-5)
    per_sample = denoise(X, jnp.array([0.5, 2.0]))
    chex.assert_trees_all_close(per_sample[1], gaussian(5.0)(X, 2.0)[1], atol=1e-5)


@pytest.mark.parametrize("scale, low, high", [(-1.0, 0.0, 1.0), (2.0, 1.0, 1.0), (2.0, -0.1, 1.0)])
def test_bad_guidance_is_refused(scale, low, high):
    with pytest.raises(ValueError, match="guidance"):
        guidance.interval(gaussian(0.0), gaussian(0.0), scale, low, high)


def test_thresholding_by_hand():
    """Positions of 0.995 (N - 1) between order statistics; inside [-1, 1] nothing changes."""
    inside = jnp.linspace(-1, 1, 9)[None]
    chex.assert_trees_all_equal(guidance.dynamic_threshold(inside), inside)
    values = np.arange(1.0, 201.0)  # 0.995 * 199 = 198.005: between 199 and 200
    out = guidance.dynamic_threshold(jnp.asarray(values)[None])[0]
    np.testing.assert_allclose(out, np.minimum(values / 199.005, 1.0), rtol=1e-6)


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8))
def test_thresholded_values_are_in_range_and_keep_their_order(values):
    x = jnp.array(values, jnp.float32)[None]
    out = np.asarray(guidance.dynamic_threshold(x))[0]
    assert np.abs(out).max() <= 1 + 1e-6
    order = np.argsort(values, kind="stable")
    assert (np.diff(out[order]) >= -1e-6).all()


@pytest.mark.parametrize("quantile", [0.0, 1.5])
def test_a_quantile_is_a_share(quantile):
    with pytest.raises(ValueError, match="quantile"):
        guidance.thresholded(gaussian(0.0), quantile)


def test_the_first_guess_is_exact_for_unit_variance_and_in_float32():
    chex.assert_trees_all_close(guidance.gaussian_guess(X, 3.0), gaussian(0.0)(X, 3.0), rtol=0.7)
    exact = np.asarray(X, np.float64) * (1 - 80 / np.sqrt(1 + 80.0**2))
    np.testing.assert_allclose(guidance.gaussian_guess(X, jnp.float32(80.0)), exact, rtol=1e-6)


def test_the_options_of_a_sampler_are_denoisers_around_it():
    """Thresholding reaches the steps and the guess, not the last call; the guess saves a call."""
    calls = []

    def denoise(x, sigma):
        return 3.0 * gaussian(0.5)(x, sigma)

    def watched(x, sigma):
        calls.append(float(sigma))
        return denoise(x, sigma)

    with jax.disable_jit():
        made = named.sampler(
            "euler", 4, schedule=OPEN, afs=True, threshold=True, denoise_to_zero=True
        )
        out = named.generate(watched, made, X)
    sigmas = OPEN(4)
    np.testing.assert_allclose(calls, sigmas[1:], rtol=1e-6)
    x = sigmas[0] * X
    known = guidance.dynamic_threshold(guidance.gaussian_guess(x, sigmas[0]))
    x = driver.sample(guidance.thresholded(denoise), multistep.euler(), x, sigmas, known=known)
    chex.assert_trees_all_close(out, denoise(x, sigmas[-1]), rtol=1e-5)


class TestRequests:
    """Guidance as a request of a config."""

    network = mlp.build({"hidden": (8,)}, (2,), 3)
    model = Model(network, precond.edm())
    params = network.init(jax.random.key(0), X, {})

    def images(self, cond, **guide):
        request = {"one": {"name": "euler", "nfe": 8, "guidance": guide}}
        made = sampling.samplers(request, self.model, OPEN, (2,))["one"]
        assert made.nfe == 8
        return made.generate(
            self.params, {}, rng.image_keys(jax.random.key(1), jnp.arange(4)), cond
        )

    def test_half_the_steps_and_both_models(self):
        label = {"label": jax.nn.one_hot(jnp.arange(4) % 3, 3)}
        out = self.images(label, scale=2.5)
        latents = rng.normal_per_image(rng.image_keys(jax.random.key(1), jnp.arange(4)), (2,))
        aimed, base = (precond.denoiser(self.model, self.params, cond) for cond in (label, {}))
        sigmas = OPEN(4)
        expected = driver.sample(
            guidance.guided(aimed, base, 2.5), multistep.euler(), float(sigmas[0]) * latents, sigmas
        )
        chex.assert_trees_all_close(out, expected, rtol=1e-4, atol=1e-5)
        assert jnp.abs(out - self.images(label, scale=2.5, low=0.2, high=3.0)).max() > 1e-4

    def test_an_interval_without_the_condition_takes_both_models(self):
        """Scale 0 between two levels: unconditional there, conditional elsewhere, so two calls a step."""
        label = {"label": jax.nn.one_hot(jnp.arange(4) % 3, 3)}
        bounded, whole = self.images(label, scale=0.0, low=0.5, high=2.0), self.images(label, scale=0.0)
        assert jnp.abs(bounded - whole).max() > 1e-4
        assert sampling.Guidance(0.0, 0.5, 2.0).calls() == 2 and sampling.Guidance(0.0).calls() == 1

    def test_what_cannot_be_guided_is_refused(self):
        with pytest.raises(ValueError, match="this one has none: drop the guidance"):
            self.images({}, scale=2.0)
        request = {"one": {"name": "euler", "nfe": 7, "guidance": {"scale": 2.0}}}
        with pytest.raises(ValueError, match="even nfe"):
            sampling.samplers(request, self.model, OPEN, (2,))
        request["one"]["guidance"] = {"scal": 2.0}
        with pytest.raises(ValueError, match="guidance has no setting scal"):
            sampling.samplers(request, self.model, OPEN, (2,))
