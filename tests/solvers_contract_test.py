"""What every solver found under solvers/ must do: order, exact cost, jit, vmap, gradients, low precision."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import registry
from fastdiff_jax.solvers import driver, schedules

FACTORIES, ORDERS = registry.entries("solvers", "SOLVERS"), registry.entries("solvers", "ORDERS")
S, HIGH, LOW = 0.5, 10.0, 0.1
OPEN = schedules.polynomial(LOW, HIGH, 7.0, zero=False)
NAMES = sorted(FACTORIES)


def gaussian(x, sigma):
    return S**2 / (S**2 + sigma**2) * x


def mixture(x, sigma):
    """Two modes at +-1 of deviation 0.3, in every coordinate."""
    variance = 0.3**2 + sigma**2
    mean = jnp.tanh(x / variance)
    return (0.3**2 * x + sigma**2 * mean) / variance


def silent(step, draw):
    return 0.0


def solver_of(name):
    factory = FACTORIES[name]
    raw = getattr(factory, "func", factory)
    takes = raw.__code__.co_varnames[: raw.__code__.co_argcount]
    return factory(lower_order_final=False) if "lower_order_final" in takes else factory()


def flow(name, x, steps, denoise=gaussian):
    return driver.sample(denoise, solver_of(name), x, OPEN(steps), noise=silent)


def test_every_solver_states_its_order():
    assert set(ORDERS) == set(FACTORIES)


@pytest.mark.parametrize("name", NAMES)
def test_converges_at_its_order_on_a_gaussian(name, x64):
    """Closed form: x(low) = x(high) sqrt((S^2 + low^2) / (S^2 + high^2))."""
    x = HIGH * jax.random.normal(jax.random.key(0), (16, 3))
    exact = x * np.sqrt((S**2 + LOW**2) / (S**2 + HIGH**2))
    errors = [jnp.abs(flow(name, x, n) - exact).max() for n in (40, 80, 160)]
    rates = np.log2([errors[0] / errors[1], errors[1] / errors[2]])
    assert rates.min() > ORDERS[name] - 0.3, rates
    assert errors[2] < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_converges_at_its_order_on_a_mixture(name, x64):
    x = HIGH * jax.random.normal(jax.random.key(0), (16, 3))
    exact = flow("heun", x, 4000, mixture)
    errors = [jnp.median(jnp.abs(flow(name, x, n, mixture) - exact)) for n in (80, 160)]
    assert np.log2(errors[0] / errors[1]) > ORDERS[name] - 0.5


@pytest.mark.parametrize("name", NAMES)
def test_cost_is_exact(name):
    calls = []

    def denoise(x, sigma):
        jax.debug.callback(lambda: calls.append(1), ordered=True)
        return gaussian(x, sigma)

    for zero in (False, True):
        calls.clear()
        sigmas = schedules.polynomial(LOW, HIGH, 7.0, zero)(5)
        jax.block_until_ready(
            driver.sample(denoise, solver_of(name), jnp.ones((1, 2)), sigmas, noise=silent)
        )
        jax.effects_barrier()
        assert len(calls) == driver.evaluations(solver_of(name), sigmas)


@pytest.mark.parametrize("name", NAMES)
def test_jit_and_vmap_change_nothing(name):
    x = jax.random.normal(jax.random.key(0), (4, 3)) * HIGH
    run = functools.partial(flow, name, steps=6, denoise=mixture)
    plain = run(x)
    chex.assert_trees_all_close(jax.jit(run)(x), plain, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda row: run(row[None])[0])(x)
    chex.assert_trees_all_close(mapped, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_through_the_sampler(name, x64):
    x = jax.random.normal(jax.random.key(0), (2, 3)) * HIGH

    def objective(scale):
        return jnp.sum(flow(name, x, 5, lambda y, sigma: scale * mixture(y, sigma)) ** 2)

    numeric = (objective(1.0 + 1e-6) - objective(1.0 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(objective)(1.0), numeric, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype, bound", [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_low_precision_is_stable(name, dtype, bound):
    x = jax.random.normal(jax.random.key(0), (8, 3)) * HIGH
    with jax.enable_x64(True):
        exact = np.asarray(flow(name, x.astype(jnp.float64), 20))
    rough = flow(name, x.astype(dtype), 20)
    assert rough.dtype == dtype
    assert np.abs(np.asarray(rough, np.float64) - exact).max() < bound
