"""Solvers that add noise: their deterministic limits, marginals, what is exact, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax.solvers import driver, multistep, schedules, singlestep, stochastic

OPEN = schedules.polynomial(0.01, 10.0, zero=False)
CLOSED = schedules.polynomial(0.01, 10.0)
NAMES = sorted(stochastic.SOLVERS)


def gaussian(x, sigma):
    return 0.25 / (0.25 + sigma**2) * x


def responses(solver, sigmas, denoise):
    """What the end is worth of the start (first) and of each step's unit draw, for linear denoisers."""
    steps = len(sigmas) - 1

    def unit(step, draw):
        assert draw == 0, "one draw a step"
        return (jnp.arange(1 + steps) == 1 + step).astype(jnp.float64)[:, None]

    start = jnp.zeros((1 + steps, 1)).at[0].set(1.0)
    return np.asarray(driver.sample(denoise, solver, start, sigmas, noise=unit))[:, 0]


@pytest.mark.parametrize(
    "noisy, plain",
    [
        (stochastic.ddim_eta, multistep.euler),
        (stochastic.dpm_2_a, singlestep.dpm_2),
    ],
)
def test_without_eta_they_are_deterministic(noisy, plain):
    x = 10 * jax.random.normal(jax.random.key(0), (3, 2))
    ours, theirs = (driver.sample(gaussian, s, x, CLOSED(5)) for s in (noisy(eta=0), plain()))
    chex.assert_trees_all_equal(ours, theirs)
    nearly = driver.sample(
        gaussian, noisy(eta=1e-6), x, CLOSED(5), noise=lambda i, j: jnp.ones_like(x)
    )
    chex.assert_trees_all_close(nearly, theirs, rtol=1e-4, atol=1e-4)


@given(st.floats(0, 1), st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=50)
def test_the_split_keeps_the_next_level(eta, ratio):
    down, up = stochastic.split(np.array([3.0, 3.0 * ratio, 0.0]), eta)
    np.testing.assert_allclose(down**2 + up**2, [9 * ratio**2, 0], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_point_keeps_its_marginal_at_every_step(name, x64):
    """Data at one point: x = x0 + sigma eps throughout, so the variance is sigma'^2, whatever the steps."""
    sigmas = OPEN(6)
    for stop in (2, 4, 7):
        levels = sigmas[:stop]
        response = responses(
            stochastic.SOLVERS[name](), levels, lambda x, sigma: jnp.zeros_like(x)
        )
        variance = response[0] ** 2 * levels[0] ** 2 + (response[1:] ** 2).sum()
        np.testing.assert_allclose(variance, levels[-1] ** 2, rtol=1e-12)
    assert response[1:].all()


def test_ddpm_has_the_posterior_s_mean_and_variance(x64):
    """In VP coordinates z = x sqrt(abar): arXiv:2006.11239, eq. 7."""
    alpha, before = 0.3, 0.5  # abar at the step's start and end
    sigmas = np.sqrt([(1 - alpha) / alpha, (1 - before) / before])
    row = stochastic.ddim_rows(sigmas, 1.0)
    beta = 1 - alpha / before
    mean_x0 = np.sqrt(before) * beta / (1 - alpha)
    mean_z = np.sqrt(alpha / before) * (1 - before) / (1 - alpha)
    np.testing.assert_allclose(row.b[0, 0] * np.sqrt(before), mean_x0, rtol=1e-12)
    np.testing.assert_allclose(row.a[0] * np.sqrt(before / alpha), mean_z, rtol=1e-12)
    variance = (1 - before) / (1 - alpha) * beta
    np.testing.assert_allclose(row.spread[0] ** 2 * before, variance, rtol=1e-12)


def test_a_step_onto_zero_is_the_prediction_and_adds_nothing(x64):
    for name in NAMES:
        response = responses(stochastic.SOLVERS[name](), CLOSED(3), gaussian)
        assert response[-1] == 0 and response[1:-1].all(), name


def test_sde_dpmpp_2m_is_of_second_order_in_what_only_sigma_changes(x64):
    """x0 = sin(lambda): the mean obeys d(mean)/dlambda = 2 (x0 - mean), in closed form."""

    def denoise(x, sigma):
        return jnp.broadcast_to(jnp.sin(-jnp.log(sigma)), x.shape)

    def particular(t):
        return (4 * np.sin(t) - 2 * np.cos(t)) / 5

    def error(make, steps):
        sigmas = np.geomspace(10.0, 0.1, steps + 1)
        t = -np.log(sigmas[[0, -1]])
        exact = particular(t[1]) + np.exp(2 * (t[0] - t[1])) * (1.0 - particular(t[0]))
        still = driver.sample(denoise, make(), jnp.ones((1, 1)), sigmas, noise=lambda i, j: 0.0)
        return abs(float(still[0, 0]) - exact)

    def rate(make):
        return np.log2(error(make, 40) / error(make, 80))

    assert rate(lambda: stochastic.sde_dpmpp_2m(lower_order_final=False)) > 1.8
    assert 0.8 < rate(stochastic.ddpm) < 1.2


def test_noise_is_asked_for_by_step_and_needed():
    x, sigmas, asked = jnp.ones((1, 2)), OPEN(3), []

    def noise(step, draw):
        asked.append((int(step), draw))
        return jnp.zeros_like(x)

    with jax.disable_jit():
        driver.sample(gaussian, stochastic.dpm_2_a(), x, sigmas, noise=noise)
    assert asked == [(0, 0), (1, 0), (2, 0)]
    for name in NAMES:
        with pytest.raises(ValueError, match="draws noise at every step; pass noise"):
            driver.sample(gaussian, stochastic.SOLVERS[name](), x, sigmas)


@pytest.mark.parametrize("make", [stochastic.ddim_eta, stochastic.dpm_2_a])
def test_other_etas_are_refused(make):
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got 1.5"):
        make(eta=1.5)
