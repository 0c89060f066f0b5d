"""Preconditioners against closed forms: variances, ranges, the discrete table."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import precond
from fastdiff_jax.types import Coefficients, Model, Network

TABLE = precond.iddpm_table()


def constant(value=None):
    """A network that answers `value`, or else c_noise in every pixel."""

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        return jnp.zeros_like(x) + (c_noise[:, None] if value is None else value)

    return Network(None, apply)


@given(st.floats(1e-3, 1e3), st.floats(0.05, 5.0))
@settings(deadline=None, max_examples=50)
def test_edm_holds_input_and_target_at_unit_variance(sigma, deviation):
    """For x0 of deviation sd: of c_in x, and of the target (x0 - c_skip x) / c_out."""
    c = precond.edm(deviation).coefficients(jnp.array([sigma], jnp.float32))
    skip, out, inp, noise = (float(v[0]) for v in c)
    np.testing.assert_allclose(inp**2 * (deviation**2 + sigma**2), 1.0, rtol=1e-5)
    target = (1 - skip) ** 2 * deviation**2 + skip**2 * sigma**2
    np.testing.assert_allclose(target / out**2, 1.0, rtol=1e-2)  # 1 - skip cancels at small sigma
    np.testing.assert_allclose(noise, np.log(sigma) / 4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["edm", "vp", "ve", "iddpm"])
def test_a_network_that_knows_the_noise_makes_the_clean_image(name):
    """F = (x0 - c_skip x) / c_out gives x0; for noise prediction F is eps up to its sign."""
    x0, eps, sigma = jnp.float32([[0.3, -0.7]]), jnp.float32([[1.1, 0.4]]), jnp.float32([0.8])
    model, x = precond.PRECONDS[name](), x0 + 0.8 * eps
    c = model.coefficients(sigma)
    target = (x0 - c.skip[:, None] * x) / c.out[:, None]
    if name != "edm":
        chex.assert_trees_all_close(target, -eps * jnp.sign(c.out), rtol=1e-5)
    made = precond.denoiser(Model(constant(target), model), {})(x, sigma)
    chex.assert_trees_all_close(made, x0, rtol=1e-5)


def test_vp_input_has_unit_variance_for_unit_data_and_its_own_clock(x64):
    sigma = jnp.geomspace(1.1e-3, 150.0, 9)
    c = precond.vp().coefficients(sigma)
    np.testing.assert_allclose(c.inp**2 * (1 + sigma**2), 1.0, rtol=1e-12)
    t = c.noise / 999
    np.testing.assert_allclose(jnp.expm1(19.9 * t**2 / 2 + 0.1 * t), sigma**2, rtol=1e-9)
    np.testing.assert_allclose(precond.ve().coefficients(sigma).noise, jnp.log(sigma / 2), rtol=1e-12)


RANGES = {"edm": (0.0, np.inf), "vp": (1.00050e-3, 152.167), "ve": (0.02, 100.0),
          "iddpm": (6.425e-3, 20291.17), "discrete": (0.0291672, 14.61464),
          "identity": (0.0, np.inf)}  # fmt: skip


@pytest.mark.parametrize("name", precond.PRECONDS)
def test_ranges_are_the_published_ones(name):
    model = precond.PRECONDS[name]()
    np.testing.assert_allclose((model.sigma_min, model.sigma_max), RANGES[name], rtol=1e-4)


@pytest.mark.parametrize("name", ["edm", "vp", "ve", "identity"])
def test_models_of_a_continuum_round_nothing(name):
    sigma = jnp.array([0.1234, 5.678])
    chex.assert_trees_all_equal(precond.PRECONDS[name]().round(sigma), sigma)


def test_the_discrete_table_is_the_recursion():
    """1 / (1 + u_j^2) is the product of the (floored) alpha ratios, and the levels decrease to zero."""
    assert TABLE[1000] == 0 and np.all(np.diff(TABLE) < 0) and len(TABLE) == 1001
    bar = np.sin(np.pi / 2 * np.arange(1001) / (1000 * 1.008)) ** 2
    expected = np.sqrt(1 / (bar[1:] / bar[1000]) - 1)  # as long as no ratio is at its floor
    np.testing.assert_allclose(TABLE[1:1000], expected[:-1], rtol=1e-8)
    np.testing.assert_allclose(TABLE[8], 80.204, rtol=1e-5)


@given(st.floats(0.0, 25_000.0))
@settings(deadline=None, max_examples=50)
def test_discrete_levels_round_to_the_nearest(sigma):
    model = precond.iddpm()
    rounded = float(model.round(jnp.float32(sigma)))
    assert rounded in TABLE.astype(np.float32)
    nearest = np.abs(TABLE - np.float64(np.float32(sigma))).min()
    assert abs(rounded - sigma) <= nearest * (1 + 1e-4) + 2e-7 * sigma + 1e-9


def test_discrete_levels_round_to_themselves_and_count_down(x64):
    model = precond.iddpm()
    np.testing.assert_array_equal(model.round(jnp.asarray(TABLE)), TABLE)
    steps = model.coefficients(jnp.asarray(TABLE[:-1])).noise
    np.testing.assert_array_equal(steps, 999 - np.arange(1000))
    assert model.round(jnp.asarray(TABLE[:6].reshape(2, 3))).shape == (2, 3)


def test_learned_variances_are_dropped():
    doubled = Network(None, lambda p, x, c, cond, **k: jnp.concatenate([x, 7 * x], -1))
    out = precond.denoiser(Model(doubled, precond.iddpm()), {})(jnp.ones((2, 4, 4, 3)), 1.0)
    chex.assert_shape(out, (2, 4, 4, 3))
    c = precond.iddpm().coefficients(jnp.ones(1))
    np.testing.assert_allclose(out, float(1 + c.out[0] * c.inp[0]), rtol=1e-6)


def test_identity_hands_x_and_sigma_over():
    c = precond.identity().coefficients(jnp.array([0.7]))
    chex.assert_trees_all_close(c, Coefficients(*(jnp.array([v]) for v in (0.0, 1.0, 1.0, 0.7))))


class DenoiserTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_takes_one_level_or_one_a_sample(self):
        denoise = self.variant(precond.denoiser(Model(constant(), precond.edm()), {}))
        x = jnp.ones((3, 2))
        one = denoise(x, 0.7)
        chex.assert_shape(one, (3, 2))
        chex.assert_trees_all_close(one, denoise(x, jnp.full(3, 0.7)), rtol=1e-6)
        several = denoise(x, jnp.array([0.7, 2.0, 0.1]))
        chex.assert_trees_all_close(several[0], one[0], rtol=1e-6)
        assert not np.allclose(several[1], one[1])


def test_weights_condition_and_dropout_reach_the_network():
    seen = {}

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        seen.update(params=params, cond=cond, dropout=dropout)
        return x

    model = Model(Network(None, apply), precond.edm())
    precond.denoiser(model, "weights", {"label": 1}, "key")(jnp.ones((1, 2)), 1.0)
    assert seen == {"params": "weights", "cond": {"label": 1}, "dropout": "key"}


@pytest.mark.parametrize("options, words", [
    (dict(name="vpp"), "known: edm, vp, ve"),
    (dict(name="edm", sigma=0.5), "no option 'sigma'; known: sigma_data"),
    (dict(name="edm", sigma_data=-1.0), "positive; got -1"),
])  # fmt: skip
def test_bad_preconditioners_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        precond.build(options)
