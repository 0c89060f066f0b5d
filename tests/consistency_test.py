"""Consistency functions: scalings at the boundary, few-step sampling that is exact, and diffusers' DDIM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import precond
from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers import consistency, driver, multistep, named, strided
from fastdiff_jax.types import Model, Network

S = 0.5
ABAR = discrete.alphas_cumprod()


def jump(x, sigma):
    """Where the flow of Gaussian data ends: its consistency function."""
    return x * S / jnp.sqrt(S**2 + sigma**2)


def posterior(x, sigma):
    return S**2 / (S**2 + sigma**2) * x


def levels(spacing, count):
    return np.append(discrete.sigmas(ABAR)[discrete.labels(spacing, count)], 0.0)


@pytest.mark.parametrize("spacing", ["trailing", "lcm"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_samples_of_the_exact_function_have_the_exact_variance(spacing, count, x64):
    """Responses to unit draws: a row for the start and one for each step's noise."""
    sigmas = levels(spacing, count)
    rows = jnp.arange(1 + count)
    unit = lambda step, draw: (rows == 1 + step).astype(jnp.float64)[:, None]
    start = jnp.zeros((1 + count, 1)).at[0].set(np.hypot(S, sigmas[0]))
    found = driver.sample(jump, consistency.lcm(pure=False), start, sigmas, noise=unit)
    np.testing.assert_allclose(jnp.sum(found**2), S**2, rtol=1e-10)


def test_pure_starts_are_unit_noise_in_the_model_s_own_coordinates(x64):
    """Latents z become the VP state z, sqrt(1 + sigma^2) z here; with its own noise kept it is DDIM."""
    latents, sigmas = jax.random.normal(jax.random.key(0), (4, 3)), levels("trailing", 2)
    sampler = named.sampler("lcm", 2, schedule=lambda n: levels("trailing", n))
    found = named.generate(jump, sampler, latents, noise=lambda step, draw: 0.0)
    first = jump(np.hypot(1, sigmas[0]) * latents, sigmas[0])
    np.testing.assert_allclose(found, jump(first, sigmas[1]))
    kept = named.sampler("lcm", 2, schedule=lambda n: levels("trailing", n), renoise=False, pure=False)
    ddim = driver.sample(jump, multistep.euler(), sigmas[0] * latents, sigmas)
    np.testing.assert_allclose(named.generate(jump, kept, latents), ddim)


def test_afs_cannot_guess_a_call_at_a_moved_state():
    with pytest.raises(ValueError, match="moves x before its first call"):
        named.sampler("lcm", 2, schedule=lambda n: levels("trailing", n), afs=True)


def test_the_boundary_is_the_identity_at_label_0_and_the_network_far_from_it(x64):
    table = discrete.sigmas(ABAR)
    base = precond.discrete()
    bounded = precond.with_boundary(base, discrete.clock(ABAR))
    model = Model(Network(lambda *_: {}, lambda params, x, *_, **__: jnp.sin(x)), bounded)
    plain = model._replace(precond=base)
    x = jax.random.normal(jax.random.key(0), (2, 3))
    sigma = jnp.asarray(table[[0, 999]])
    found = precond.denoiser(model, {})(x, sigma)
    np.testing.assert_allclose(found[0], x[0] / np.hypot(1, table[0]), rtol=1e-8)
    np.testing.assert_allclose(found[1], precond.denoiser(plain, {})(x, sigma)[1], rtol=1e-6)
    skip, out = precond.boundary(7.0, scaling=2.0, sigma_data=3.0)
    np.testing.assert_allclose([skip, out], [9 / 205, 14 / np.sqrt(205)])


@pytest.mark.parametrize("count", [1, 4, 20])
def test_strided_ddim_is_ddim_where_strides_meet_the_levels(count, x64):
    """Down to its last step, which ends at label 0 and not at zero."""
    sigmas = levels("trailing", count)
    x = sigmas[0] * jax.random.normal(jax.random.key(0), (4, 3))
    both = [
        driver.sample(posterior, solver, x, sigmas, trace=True).states
        for solver in (strided.ddim(ABAR, 1000 // count), multistep.euler())
    ]
    np.testing.assert_allclose(both[0][:-1], both[1][:-1], rtol=1e-9)
    before, low = both[1][-2], discrete.sigmas(ABAR)[0]
    x0 = posterior(before, sigmas[-2])
    end = (x0 + low * (before - x0) / sigmas[-2]) / np.hypot(1, low)
    np.testing.assert_allclose(both[0][-1], end, rtol=1e-9)


def test_strided_ddim_needs_levels_of_its_table():
    with pytest.raises(ValueError, match="is no level of the discrete model"):
        driver.sample(posterior, strided.ddim(ABAR, 100), jnp.ones((1, 2)), np.array([2.0, 0.0]))
