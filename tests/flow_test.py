"""Rectified flow: shifted levels, exact flows of a point and a Gaussian, and what is left of matching there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax.losses import flow as losses
from fastdiff_jax.processes import flow
from fastdiff_jax.solvers import driver
from fastdiff_jax.solvers import flow as solvers

POINT, SPREAD = 0.7, 0.4


def to_point(x, sigma):
    """eps - x0 of data that are one point: x = sigma eps + (1 - sigma) x0."""
    return (x - POINT) / sigma


def of_gaussian(x, sigma):
    """E[eps - x0 | x] of N(0, SPREAD^2)."""
    variance = sigma**2 + ((1 - sigma) * SPREAD) ** 2
    return (sigma - (1 - sigma) * SPREAD**2) / variance * x


def test_shift_moves_levels_towards_noise_and_undoes_itself():
    s = np.linspace(0, 1, 11)
    np.testing.assert_allclose(flow.shifted(flow.shifted(s, 3.0), 1 / 3.0), s, atol=1e-15)
    np.testing.assert_allclose(flow.shifted(s, 1.0), s, atol=1e-15)
    # Odds of noise are multiplied by the shift.
    odds = lambda x: x / (1 - x)
    np.testing.assert_allclose(odds(flow.shifted(s[1:-1], 3.0)), 3 * odds(s[1:-1]))


def test_sampling_levels_are_shifted_twice():
    """Published: four steps of Stable Diffusion 3's students are told 1000, 857.7, 602.2 and 8.93."""
    told = flow.labels(flow.sigmas(4)[:-1])
    np.testing.assert_allclose(told, [1000, 857.7, 602.2, 8.93], atol=0.05)
    np.testing.assert_array_equal(flow.sigmas(1), [1, 0])
    assert flow.trained()[0] == 1 and len(flow.trained()) == 1000
    np.testing.assert_allclose(flow.sigmas(5, shift=1.0)[:-1], np.linspace(1, 0.001, 5))


@pytest.mark.parametrize("renoise", [False, True])
def test_one_jump_finds_a_point_from_noise_alone(renoise):
    x = jax.random.normal(jax.random.key(0), (4, 3))
    for steps in (1, 3):
        found = driver.sample(
            to_point, solvers.jump(renoise), x, flow.sigmas(steps), noise=lambda step, draw: -x
        )
        np.testing.assert_allclose(found, POINT, rtol=1e-5)


def test_euler_converges_on_a_gaussian_from_any_start(x64):
    """x(0) = x(sigma) SPREAD / sqrt(sigma^2 + (1 - sigma)^2 SPREAD^2)."""
    x, errors = jax.random.normal(jax.random.key(0), (4, 3)), []
    for steps in (40, 80):
        sigmas = flow.sigmas(steps, shift=1.0)
        start = steps // 4
        level = sigmas[start]
        exact = x * SPREAD / np.sqrt(level**2 + ((1 - level) * SPREAD) ** 2)
        run = jax.jit(lambda i, s=sigmas: driver.sample(of_gaussian, solvers.euler(), x, s, start=i))
        errors.append(float(jnp.abs(run(start) - exact).max()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15) and errors[1] < 0.02


def test_new_noise_needs_noise():
    with pytest.raises(ValueError, match="draws it at every step; pass noise"):
        driver.sample(to_point, solvers.jump(), jnp.ones((1, 2)), flow.sigmas(2))


def test_noised_ends_in_noise_and_jumps_back():
    x0, noise = jax.random.normal(jax.random.key(0), (2, 5, 3))
    np.testing.assert_array_equal(losses.noised(x0, jnp.array(1.0), noise), noise)
    sigma = jnp.linspace(0.1, 1, 5)
    x = losses.noised(x0, sigma, noise)
    np.testing.assert_allclose(losses.jumped(lambda *_: noise - x0, x, sigma), x0, atol=1e-6)


def test_matching_pushes_from_the_fake_to_the_real_velocity():
    """v = eps - x0: a fake x0 above the real one makes v_real - v_fake positive, and x is pushed down."""
    x, eps = jnp.ones((2, 3)), jnp.zeros((2, 3))
    real, fake = eps - 0.5, eps - 0.8
    np.testing.assert_allclose(losses.direction(x, real, fake), 0.3 / (1.5 + 1e-5), rtol=1e-5)
    assert not np.any(losses.direction(x, real, real))
    assert not np.any(jax.grad(lambda x: losses.direction(x, real, fake).sum())(x))


@pytest.mark.parametrize("call, words", [
    (lambda: flow.shifted(0.5, 0.0), "positive factor, 1 for none; got 0.0"),
    (lambda: flow.sigmas(0), "at least one; got 0"),
])  # fmt: skip
def test_bad_requests_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
