"""Discrete models: known tables, the map through them and its inverse, labels, and the preconditioner."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import precond
from fastdiff_jax.losses import matching
from fastdiff_jax.processes import discrete
from fastdiff_jax.types import Model, Network

SD = discrete.alphas_cumprod()


def test_tables_of_known_models():
    """Published ends: DDPM's last abar is 4.036e-5, Stable Diffusion's 0.00466, its sigma 14.6146."""
    assert np.isclose(discrete.alphas_cumprod("linear")[-1], 4.0358e-5, rtol=1e-4)
    assert np.isclose(SD[-1], 0.0046601, rtol=1e-5)
    np.testing.assert_allclose(discrete.sigmas(SD)[[0, -1]], [0.02916716, 14.61464123], rtol=1e-7)
    chex.assert_shape(discrete.cosine(), (1000,))


def test_cosine_betas_multiply_to_the_squared_cosine():
    k = np.arange(1, 101) / 100
    g = np.cos(np.pi / 2 * (k + 0.008) / 1.008) ** 2 / np.cos(np.pi / 2 * 0.008 / 1.008) ** 2
    abar = discrete.alphas_cumprod("cosine", 100)
    np.testing.assert_allclose(abar[:-1], g[:-1], rtol=1e-12)
    assert abar[-1] == pytest.approx(abar[-2] * 0.001)  # the last beta is cut


def test_own_betas_are_used():
    abar = discrete.alphas_cumprod("linear", 3, 0.1, 0.3)
    np.testing.assert_allclose(abar, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-15)


@pytest.mark.parametrize("betas", discrete.BETAS)
def test_the_map_passes_through_the_levels_and_back(betas, x64):
    abar = discrete.alphas_cumprod(betas, 50)
    process, tau = discrete.process(abar), jnp.arange(1, 51) / 50
    np.testing.assert_allclose(process.sigma(tau), discrete.sigmas(abar), rtol=1e-11)
    np.testing.assert_allclose(process.scale(tau) ** 2, abar, rtol=1e-12)
    np.testing.assert_allclose(process.inverse(jnp.asarray(discrete.sigmas(abar))), tau, rtol=1e-11)
    assert (process.t_min, process.t_max) == (1 / 50, 1.0)


def test_between_and_beyond_the_levels_log_alpha_is_linear(x64):
    """A model of three levels, by hand: ln alpha = -1, -3, -4 at tau = 1/3, 2/3, 1."""
    process = discrete.process(np.exp([-2.0, -6.0, -8.0]))
    tau = jnp.array([0.25, 1 / 3, 0.5, 5 / 6, 1.0, 4 / 3])
    expected = np.array([-0.5, -1.0, -2.0, -3.5, -4.0, -5.0])
    np.testing.assert_allclose(jnp.log(process.scale(tau)), expected, rtol=1e-12)
    sigma = np.sqrt(np.expm1(-2 * expected))
    np.testing.assert_allclose(process.sigma(tau), sigma, rtol=1e-12)
    np.testing.assert_allclose(process.inverse(jnp.asarray(sigma)), tau, rtol=1e-12)
    assert np.isnan(process.sigma(0.1))  # ln alpha would be positive: no such level


@functools.cache
def there_and_back(betas, steps):
    process = discrete.process(discrete.alphas_cumprod(betas, steps))
    return jax.jit(lambda tau: process.inverse(process.sigma(tau)))


@given(st.floats(0, 1), st.sampled_from(sorted(discrete.BETAS)), st.sampled_from([2, 50, 400]))
@settings(deadline=None, max_examples=60)
def test_the_inverse_undoes_the_map(share, betas, steps):
    """From the first level to three beyond the last."""
    tau = 1 / steps + share * (1 + 2 / steps)
    with jax.enable_x64(True):
        assert float(there_and_back(betas, steps)(tau)) == pytest.approx(tau, rel=1e-9)


def test_single_precision_tells_labels_apart_and_gradients_agree():
    process, labels = discrete.process(SD), np.arange(1000)
    told = 1000 * process.inverse(jnp.asarray(discrete.sigmas(SD), jnp.float32)) - 1
    chex.assert_type(told, jnp.float32)
    assert np.abs(told - labels).max() < 5e-3
    slopes = jax.vmap(jax.grad(process.inverse))(jnp.array([0.05, 1.0, 9.0]))
    with jax.enable_x64(True):
        sigma = jnp.array([0.05, 1.0, 9.0])
        there = process.inverse(sigma)
        expected = 1 / jax.vmap(jax.grad(process.sigma))(there)
    np.testing.assert_allclose(slopes, expected, rtol=1e-3)


def test_the_preconditioner_tells_the_label_and_reads_noise(x64):
    """A network that answers with its label: D = x - sigma label."""
    seen = []

    def apply(params, x, c_noise, cond, *, dropout=None, taps=()):
        seen.append((x, c_noise))
        return jnp.broadcast_to(c_noise[:, None], x.shape)

    model = Model(Network(lambda *_: {}, apply), precond.build(dict(name="discrete")))
    labels = np.array([0, 7, 500, 999])
    x, sigma = jnp.ones((4, 3)), discrete.sigmas(SD)[labels]
    found = precond.denoiser(model, {})(x, jnp.asarray(sigma))
    np.testing.assert_allclose(seen[0][1], labels, atol=1e-8)
    np.testing.assert_allclose(seen[0][0], np.sqrt(SD[labels])[:, None] * x, rtol=1e-12)
    np.testing.assert_allclose(found, x - (sigma * labels)[:, None], rtol=1e-9)
    assert (model.precond.sigma_min, model.precond.sigma_max) == tuple(discrete.sigmas(SD)[[0, -1]])


@pytest.mark.parametrize(
    "spacing, expected",
    [
        ("trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("leading", [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
    ],
)
def test_label_lists(spacing, expected):
    """Table 2 of arXiv:2305.08891, whose labels begin at 1."""
    assert discrete.labels(spacing, 10).tolist() == expected


@pytest.mark.parametrize("steps, ties", [(48, {3: 936, 15: 686, 27: 436, 39: 186}), (96, {18: 812, 42: 562})])
def test_trailing_ties_fall_as_diffusers_sums_do(steps, ties):
    """np.arange(1000, 0, -1000 / N).round() - 1: half-way cases are not all exact there."""
    found = discrete.labels("trailing", steps)
    assert {place: found[place] for place in ties} == ties
    exact = [1000 - k * 1000 / steps for k in range(steps)]
    assert max(abs(label + 1 - value) for label, value in zip(found, exact)) < 0.5 + 1e-9


@given(st.sampled_from(sorted(discrete.SPACINGS)), st.integers(1, 50), st.integers(60, 300))
@settings(deadline=None, max_examples=60)
def test_labels_fall_within_the_model(spacing, steps, train):
    found = discrete.labels(spacing, steps, train)
    assert len(found) == steps and (np.diff(found) < 0).all()
    assert found[0] < train and found[-1] >= 0
    assert found[0] == train - 1 or spacing in ("leading", "lcm")


def test_latent_consistency_s_default_labels():
    """Out of 19, 39, ..., 999 as diffusers takes them."""
    assert discrete.labels("lcm", 4).tolist() == [999, 759, 499, 259]
    assert discrete.labels("lcm", 50).tolist() == list(range(999, 0, -20))


def test_rescaled_betas_end_without_signal():
    """Root of abar: first as before, last zero, differences in proportion (arXiv:2305.08891, Alg. 1)."""
    root, found = np.sqrt(SD), np.sqrt(discrete.rescaled(SD))
    assert found[-1] == 0 and found[0] == pytest.approx(root[0])
    np.testing.assert_allclose(np.diff(found) / np.diff(root), root[0] / (root[0] - root[-1]), rtol=1e-9)
    cut = discrete.alphas_cumprod(zero_snr=True)
    np.testing.assert_array_equal(cut, discrete.rescaled(SD)[:-1])
    assert discrete.process(cut).t_max == 1 and np.isfinite(discrete.sigmas(cut)).all()
    with pytest.raises(ValueError, match="level 999 is noise alone, abar = 0, without EDM coordinates"):
        discrete.process(discrete.rescaled(SD))


def test_labels_are_looked_up_as_diffusers_does():
    grid = np.array([999, 749, 499, 249])
    assert discrete.looked_up(jnp.array([499, 500, 999, 10]), grid).tolist() == [2, 3, 0, 3]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction", precond.PREDICTIONS)
def test_every_prediction_is_the_same_denoiser(prediction, zero_snr, x64):
    """Networks that predict noise, v or image of Gaussian data exactly, from what they are given alone."""
    spread, seen = 0.4, []
    scaling = precond.build(dict(name="discrete", prediction=prediction, zero_snr=zero_snr))

    def apply(params, x, label, cond, *, dropout=None, taps=()):
        abar = jnp.asarray(1 / (1 + scaling.table**2))[jnp.round(label).astype(int)][:, None]
        seen.append(label)
        image = spread**2 * jnp.sqrt(abar) / (spread**2 * abar + 1 - abar) * x
        noise = (x - jnp.sqrt(abar) * image) / jnp.sqrt(1 - abar)
        v = jnp.sqrt(abar) * noise - jnp.sqrt(1 - abar) * image
        return {"epsilon": noise, "v": v, "x0": image}[prediction]

    labels = np.array([0, 10, 500, 998])
    sigma = jnp.asarray(scaling.table[labels])
    x = jax.random.normal(jax.random.key(0), (4, 3)) * sigma[:, None]
    found = precond.denoiser(Model(Network(lambda *_: {}, apply), scaling), {})(x, sigma)
    np.testing.assert_allclose(found, spread**2 / (spread**2 + sigma[:, None] ** 2) * x, rtol=1e-6)
    np.testing.assert_allclose(seen[0], labels, atol=1e-7)


def test_the_objective_is_one_on_what_is_predicted():
    """Errors of the image, through c_out, weigh as errors of the prediction."""
    for prediction in precond.PREDICTIONS:
        scaling = precond.discrete(prediction=prediction)
        sigma = jnp.asarray(scaling.table[[3, 400, 999]], jnp.float32)
        objective = matching.discrete(prediction=prediction)
        np.testing.assert_allclose(objective.weight(sigma) * scaling.coefficients(sigma).out ** 2, 1, rtol=1e-5)
    with pytest.raises(ValueError, match="predicts epsilon, v, x0; got 'score'"):
        matching.discrete(prediction="score")


def test_pndm_labels_by_hand():
    assert discrete.pndm_labels(8).tolist() == [875, 750, 625, 500, 375, 250, 125, 0, -1]
    assert discrete.plms_labels(8).tolist() == [876, 751, 626, 501, 376, 251, 126, 1, -124]
    told = discrete.calls(discrete.pndm_labels(8), (4, 1, 1, 1, 1, 1, 1, 1))
    assert told.tolist() == [875, 812.5, 812.5, 750, 750, 625, 500, 375, 250, 125, 0]
    told = discrete.calls(discrete.plms_labels(4), (4, 2, 1, 1), whole=True)
    assert told.tolist() == [751, 626, 626, 501, 501, 251, 251, 1]


def test_both_label_conventions_are_one_list_of_levels():
    official, diffusers = discrete.pndm_labels(20) + 1, np.maximum(discrete.plms_labels(20), 0)
    np.testing.assert_array_equal(official, diffusers)


def test_middles_share_the_level_of_their_fraction():
    labels, table = discrete.pndm_labels(8), discrete.sigmas(SD)
    levels = table[labels + 1]
    fractions = (labels[:-1] + labels[1:]) / 2
    expected = table[np.floor(fractions).astype(int) + 1]
    np.testing.assert_array_equal(discrete.halfway(SD)(levels), expected)
    twice = discrete.halfway_twice(SD)(levels)
    t, end = labels[:-1] + 1, labels[1:] + 1  # diffusers' labels of the same levels
    half = np.append(np.full(7, 62), 0)  # 125 // 2, and 1 // 2 for the last step
    np.testing.assert_array_equal(twice, table[np.stack([t - half, end + half], 1)])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: discrete.alphas_cumprod("square"), "no betas 'square'; known: linear"),
        (lambda: discrete.alphas_cumprod(steps=1), "at least 2; got 1"),
        (lambda: discrete.alphas_cumprod("cosine", beta_0=0.1), "drop beta_0"),
        (lambda: discrete.alphas_cumprod("linear", beta_0=0.5, beta_1=0.1), "beta_0 <= beta_1"),
        (lambda: discrete.alphas_cumprod("linear", beta_0=-0.1), "got -0.1"),
        (lambda: discrete.process(np.array([0.5, 0.6])), "decrease strictly"),
        (lambda: discrete.process(np.array([0.5, 0.0])), "level 1 is noise alone"),
        (lambda: discrete.process(np.array([1.0, 0.5])), "within .0, 1."),
        (lambda: discrete.labels("lcm", 51), "lcm labels are 50 out of 1000; 51 steps"),
        (lambda: precond.discrete(prediction="score"), "predicts epsilon, v, x0; got 'score'"),
        (lambda: discrete.process(np.array([0.5])), "M at least 2"),
        (lambda: discrete.labels("middle", 10), "no label spacing 'middle'"),
        (lambda: discrete.labels("leading", 1001), "from 1 to 1000; got 1001"),
        (lambda: discrete.labels("trailing", 0), "got 0"),
        (lambda: discrete.labels("leading", 1000, offset=1), "offset 1 run from 1000"),
        (lambda: discrete.labels("trailing", 10, offset=1), "only leading labels"),
        (lambda: discrete.pndm_labels(1001), "got 1001"),
        (lambda: discrete.calls(np.arange(3), (1, 3)), "1, 2 or 4 calls"),
        (lambda: discrete.places(np.array([2.0, 0.0]), SD), "2 is no level of the discrete model"),
    ],
)
def test_bad_requests_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
