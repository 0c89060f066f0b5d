"""Losses against closed forms: noise-level laws, denoising, the score identity, accumulation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax.losses import accumulation, identity, levels, matching
from fastdiff_jax.types import expand

# Noise levels.

TAUS = {0.0: 0.002, 0.1: 0.01672, 0.2: 0.08509, 0.3: 0.31828, 0.4: 0.96542, 0.5: 2.51522,
        0.6: 5.83895, 0.7: 12.38158, 0.8: 24.40834, 1.0: 80.0}  # fmt: skip


@pytest.mark.parametrize("tau", TAUS)
def test_generator_levels_follow_the_published_curve(tau):
    whole = levels.karras(1000.0).sigma(jnp.float32(tau))
    np.testing.assert_allclose(whole, TAUS[tau], rtol=5e-4)  # four digits were published
    if tau <= 0.8:
        cut = levels.karras(800.0).sigma(jnp.float32(tau / 0.8))
        np.testing.assert_allclose(cut, whole, rtol=1e-5)


RANGES = {"karras": (0.002, 24.4084), "vp_time": (1.0005e-3, 152.168), "log_uniform": (0.02, 100.0),
          "lognormal": (0.0, np.inf), "karras_grid": (0.002, 80.0),
          "discrete": (0.029167, 14.614647)}  # fmt: skip


@pytest.mark.parametrize("name", levels.LEVELS)
def test_levels_stay_in_range_and_fill_it(name):
    law, (low, high) = levels.LEVELS[name](), RANGES[name]
    draws = law.draw(jax.random.key(0), (20_000,))
    sigma = np.asarray(law.sigma(draws))
    chex.assert_shape(sigma, (20_000,))
    assert sigma.min() >= low * (1 - 1e-5) and sigma.max() <= high * (1 + 1e-5)
    if name == "lognormal":
        np.testing.assert_allclose(np.log(sigma).mean(), -1.2, atol=0.04)
        np.testing.assert_allclose(np.log(sigma).std(), 1.2, atol=0.03)
    else:
        last = 999 if name in ("karras_grid", "discrete") else 1.0  # an index, or a time
        ends = law.sigma(jnp.array([0, last]))
        np.testing.assert_allclose(sorted(ends), [low, high], rtol=1e-2)
        np.testing.assert_allclose(draws.mean(), last / 2, atol=0.02 * last)


@pytest.mark.parametrize("t_max", [1200.0, 0.0, -5.0])
def test_generator_levels_refuse_an_impossible_end(t_max):
    with pytest.raises(ValueError, match=f"0 < t_max <= 1000; got {t_max}"):
        levels.karras(t_max)


# Denoising.


@pytest.mark.parametrize("name", matching.OBJECTIVES)
def test_the_exact_denoiser_minimises_the_loss(name):
    objective, s = matching.OBJECTIVES[name](), 0.5
    x0 = s * jax.random.normal(jax.random.key(0), (4096, 2))
    draws = objective.draw(jax.random.key(1), x0.shape)

    def total(factor, shift):
        denoise = lambda x, sigma: factor * s**2 / (s**2 + sigma[:, None] ** 2) * x + shift
        return float(objective.loss(denoise, x0, draws).mean())

    best = total(1.0, 0.0)
    assert best < min(total(f, d) for f, d in [(0.9, 0.0), (1.1, 0.0), (1.0, 0.1), (1.0, -0.1)])


def test_the_edm_loss_of_the_exact_gaussian_denoiser_is_its_closed_form(x64):
    """The residual's variance is s^2 sigma^2 / (s^2 + sigma^2): with sd = s the weighted loss is one."""
    objective = matching.edm(sigma_data=0.5)
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (200_000, 1))
    denoise = lambda x, sigma: 0.25 / (0.25 + sigma[:, None] ** 2) * x
    draws = objective.draw(jax.random.key(1), x0.shape)
    np.testing.assert_allclose(objective.loss(denoise, x0, draws).mean(), 1.0, atol=0.015)


def test_noise_prediction_losses_are_the_error_of_the_noise():
    """w (D - x0)^2 with w = 1 / sigma^2 is (predicted eps - eps)^2 for D = x - sigma predicted eps."""
    x0 = jax.random.normal(jax.random.key(0), (64, 3))
    for objective in (matching.vp(), matching.ve(), matching.discrete()):
        draws = objective.draw(jax.random.key(1), x0.shape)
        wrong = lambda x, sigma: x - sigma[:, None] * (draws["noise"] + 2.0)
        np.testing.assert_allclose(objective.loss(wrong, x0, draws), 4.0, rtol=2e-3)


def test_guarded_losses_drop_nan_samples_from_value_and_gradient():
    objective, x0 = matching.edm(), jnp.ones((3, 2))
    draws = objective.draw(jax.random.key(0), x0.shape)

    def elements(w, guard, broken):
        denoise = lambda x, sigma: w * x + jnp.where(jnp.arange(3) == broken, jnp.nan, 0.0)[:, None]
        return objective.loss(denoise, x0, draws, guard=guard)

    whole, guarded = elements(1.0, False, -1), elements(1.0, True, 1)
    chex.assert_trees_all_equal(guarded, whole.at[1].set(0.0))
    grad = jax.grad(lambda w: elements(w, True, 1).sum())(1.0)
    others = jax.grad(lambda w: elements(w, False, -1)[jnp.array([0, 2])].sum())(1.0)
    np.testing.assert_allclose(grad, others, rtol=1e-6)
    assert np.isnan(elements(1.0, False, 1).sum())
    target = x0.at[2, 0].set(jnp.nan)
    chex.assert_tree_all_finite(objective.loss(lambda x, _: x, target, draws, guard=True))


def test_unknown_objectives_are_refused():
    with pytest.raises(ValueError, match="no objective 'edn'; known: edm, edm_grid, vp, ve, discrete, cld"):
        matching.build(dict(name="edn"))
    with pytest.raises(ValueError, match="no option 'pmean'; known: p_mean"):
        matching.build(dict(name="edm", pmean=0.0))


# The score identity, in one dimension: data N(m, s^2), generator a z + b, fake score of N(nu, v).

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(8)
Z, N = (v.ravel() for v in np.meshgrid(NODES, NODES))
MASS = np.outer(WEIGHTS, WEIGHTS).ravel() / WEIGHTS.sum() ** 2


@jax.jit
def expected(a, b, m, s, nu, v, sigma, alpha):
    """E[L_alpha] at unit weight, by a quadrature that is exact for the polynomials here."""
    x = (a * Z + b)[:, None]
    x_t = x + sigma * N[:, None]
    real, fake = (
        mean + variance / (variance + sigma**2) * (x_t - mean)
        for mean, variance in ((m, s**2), (nu, v))
    )
    unit = identity.elements(x, real, fake, alpha) * identity.inverse_weight(x, real)[:, None]
    return MASS @ unit[:, 0]


def slopes(a, b, m, s, sigma, alpha):
    """(dE/da, dE/db) with the fake score optimal, but held fixed."""
    return GRADIENT(a, b, m, s, b, a**2, sigma, alpha)


GRADIENT = jax.jit(jax.grad(expected, (0, 1)))
positive, anywhere = st.floats(0.1, 3.0), st.floats(-2.0, 2.0)


@given(positive, anywhere, anywhere, positive, positive, st.floats(0.0, 1.5))
@settings(deadline=None, max_examples=50)
def test_gradients_at_the_optimal_fake_score_are_the_closed_form(a, b, m, s, sigma, alpha):
    with jax.enable_x64(True):
        found = slopes(a, b, m, s, sigma, alpha)
        k, l = sigma**2 / (s**2 + sigma**2), sigma**2 / (a**2 + sigma**2)  # noqa: E741
        on_b = -k * (m - b) * ((2 * alpha - 1) * l + 2 * (1 - alpha) * k)
        on_a = -2 * a * (l - k) * ((1 - alpha) * k + alpha * l)
        np.testing.assert_allclose(found, [on_a, on_b], rtol=1e-8, atol=1e-10)


@given(positive, anywhere, anywhere, positive, positive, st.floats(0.5, 1.0))
@settings(deadline=None, max_examples=50)
def test_up_to_alpha_one_mean_and_scale_are_pushed_the_right_way(a, b, m, s, sigma, alpha):
    with jax.enable_x64(True):
        on_a, on_b = slopes(a, b, m, s, sigma, alpha)
    if abs(m - b) > 1e-3:
        assert np.sign(-on_b) == np.sign(m - b)
    if abs(a - s) > 1e-3:
        assert np.sign(-on_a) == np.sign(s - a)


@pytest.mark.parametrize("which, limit", [("mean", 3.5), ("scale", 6.0)])
def test_extrapolation_pushes_the_right_way_up_to_a_known_width(x64, which, limit):
    """alpha = 1.2: iff a^2 + sigma^2 < 3.5 (s^2 + sigma^2) for the mean, < 6 (s^2 + sigma^2) for the scale."""
    s, sigma = 0.6, 0.8
    for share, sign in ((0.98, 1), (1.02, -1)):
        a = np.sqrt(share * limit * (s**2 + sigma**2) - sigma**2)
        on_a, on_b = slopes(a, 0.0, 1.0, s, sigma, 1.2)
        assert (-on_b if which == "mean" else on_a) * sign > 0  # towards m = 1, and towards s < a


def test_at_half_alpha_it_is_half_the_fisher_divergence(x64):
    a, b, m, s, sigma = 0.7, 0.2, 0.9, 0.5, 0.8

    def fisher(a, b):
        k, l = sigma**2 / (s**2 + sigma**2), sigma**2 / (a**2 + sigma**2)  # noqa: E741
        return (l - k) ** 2 * (a**2 + sigma**2) + k**2 * (m - b) ** 2

    half = [g / 2 for g in jax.grad(fisher, (0, 1))(a, b)]
    np.testing.assert_allclose(slopes(a, b, m, s, sigma, 0.5), half, rtol=1e-10)
    value = expected(a, b, m, s, b, a**2, sigma, 0.5)  # (1 - alpha) L
    np.testing.assert_allclose(value, fisher(a, b) / 2, rtol=1e-10)
    np.testing.assert_allclose(expected(a, b, m, s, b, a**2, sigma, 1.0), 0.0, atol=1e-12)


def test_the_plain_difference_alone_pushes_a_narrow_generator_s_mean_away(x64):
    """L_0 - L_1 is |real - fake|^2, the naive loss."""
    m = 1.0
    for a, away in ((0.3, True), (0.9, False)):
        naive, one = (np.array(slopes(a, 0.0, m, 0.6, 0.8, alpha)) for alpha in (0.0, 1.0))
        assert ((naive - one)[1] > 0) == away  # a positive slope moves b from 0 away from m


def loss_of(x, kind, noise, sigma, stop=False, alpha=1.0):
    x_t = x + sigma * noise
    x_t = jax.lax.stop_gradient(x_t) if stop else x_t
    real, fake = (s2 / (s2 + sigma**2) * (x_t - m) + m for m, s2 in ((0.3, 0.4), (-0.2, 0.9)))
    if kind == "sid":
        return identity.elements(x, real, fake, alpha).sum()
    weight = identity.inverse_weight(x, real)
    return (jax.lax.stop_gradient((fake - real) / expand(weight, x)) * x).sum()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_with_the_sampling_path_stopped_it_is_distribution_matching(alpha):
    x, noise = jax.random.normal(jax.random.key(0), (2, 5, 3))
    stopped = jax.grad(loss_of)(x, "sid", noise, 0.7, True, alpha)
    chex.assert_trees_all_close(stopped, jax.grad(loss_of)(x, "dmd", noise, 0.7), rtol=1e-5)
    assert not np.allclose(jax.grad(loss_of)(x, "sid", noise, 0.7, False, alpha), stopped)


def test_nan_samples_drop_out_of_value_and_gradient():
    x, *others = jax.random.normal(jax.random.key(0), (3, 4, 3))
    full = identity.elements(x, *others, 1.2)
    whole = jax.grad(lambda x: identity.elements(x, *others, 1.2).sum())(x)
    for which in (0, 1):  # the teacher's answer, the fake score's
        broken = [v.at[1, 2].set(jnp.nan) if i == which else v for i, v in enumerate(others)]
        chex.assert_trees_all_close(identity.elements(x, *broken, 1.2), full.at[1].set(0.0))
        grads = jax.grad(lambda x: identity.elements(x, *broken, 1.2).sum())(x)
        chex.assert_trees_all_close(grads, whole.at[1].set(0.0), rtol=1e-6)
    chex.assert_tree_all_finite(identity.elements(x.at[0, 0].set(jnp.nan), *others, 1.2))


def test_the_weight_has_a_floor_and_no_gradient():
    x = jnp.ones((2, 3))
    chex.assert_trees_all_close(identity.inverse_weight(x, x), jnp.full(2, 1e-5))
    chex.assert_trees_all_close(identity.inverse_weight(x, x + 0.5), jnp.full(2, 0.5))
    chex.assert_trees_all_close(identity.inverse_weight(x, x, 0.1), jnp.full(2, 0.1))
    assert not np.any(jax.grad(lambda x: identity.inverse_weight(x, 2 * x).sum())(x))


class IdentityTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_shapes_of_images(self):
        x, real, fake = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 1))
        elements = self.variant(lambda *a: identity.elements(*a, 1.2))(x, real, fake)
        chex.assert_shape(elements, x.shape)
        chex.assert_tree_all_finite(elements)


# Accumulation.


def quadratic(w, part, key):
    value = jnp.sum(jnp.tanh(part["x"] @ w)) / 8
    return value, {"loss": value, "rows": jnp.sum(part["count"])}


@pytest.mark.parametrize("rounds", [1, 2, 4, 8])
@pytest.mark.parametrize("unroll", [True, False])
def test_rounds_add_up_to_the_full_batch(rounds, unroll):
    x, w = jax.random.normal(jax.random.key(0), (8, 3)), jnp.arange(3.0)
    samples = {"x": x, "count": jnp.ones(8, jnp.int32)}
    full = accumulation.value_and_grad(quadratic, w, samples)
    split = accumulation.value_and_grad(quadratic, w, samples, rounds=rounds, unroll=unroll)
    chex.assert_trees_all_close(split, full, rtol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(split, full)
    assert split[0]["rows"] == 8  # every sample once


@pytest.mark.parametrize("rounds", [3, 0, -2, 16])
def test_a_batch_that_does_not_divide_into_rounds_is_refused(rounds):
    samples = {"x": jnp.ones((8, 3)), "count": jnp.ones(8)}
    with pytest.raises(ValueError, match=f"batch of 8 does not divide into {rounds} "):
        accumulation.value_and_grad(quadratic, jnp.ones(3), samples, rounds=rounds)


@pytest.mark.parametrize("unroll", [True, False])
def test_rounds_drop_out_differently(unroll):
    def loss(w, part, key):
        return w * part["x"].sum(), jax.random.normal(key, (1,))

    key = jax.random.key(0)
    both, _ = accumulation.value_and_grad(
        loss, 1.0, {"x": jnp.ones(2)}, key, rounds=2, unroll=unroll
    )
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    np.testing.assert_allclose(both, sum(jax.random.normal(k, (1,)) for k in keys), rtol=1e-6)
