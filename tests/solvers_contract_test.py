"""What every solver found under solvers/ must do: order, exact cost, jit, vmap, gradients, low precision."""

import functools
import importlib
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import registry
from fastdiff_jax.solvers import driver, schedules

FACTORIES = registry.entries("solvers", "SOLVERS")
ORDERS = registry.entries("solvers", "ORDERS")  # of convergence to the flow
WEAK_ORDERS = registry.entries("solvers", "WEAK_ORDERS")  # of the variance; solvers that add noise
JUMPS = registry.entries("solvers", "JUMPS")  # of consistency functions, see consistency_test.py: no order
S, HIGH, LOW = 0.5, 10.0, 0.1
OPEN = schedules.polynomial(LOW, HIGH, 7.0, zero=False)
NAMES, FLOWS, DIFFUSIONS = sorted(FACTORIES), sorted(ORDERS), sorted(WEAK_ORDERS)
EXEMPT = {"unipc", "pndm"}  # modules whose structure differs from step to step


def gaussian(x, sigma):
    return S**2 / (S**2 + sigma**2) * x


def mixture(x, sigma):
    """Two modes at +-1 of deviation 0.3, in every coordinate."""
    variance = 0.3**2 + sigma**2
    mean = jnp.tanh(x / variance)
    return (0.3**2 * x + sigma**2 * mean) / variance


def silent(step, draw):
    return 0.0


def still(step, draw):
    """Recorded noise: the same at every precision, in jit and out of it."""
    return jnp.cos(1.0 + step + 10.0 * draw)


def solver_of(name):
    factory = FACTORIES[name]
    raw = getattr(factory, "func", factory)
    takes = raw.__code__.co_varnames[: raw.__code__.co_argcount]
    return factory(lower_order_final=False) if "lower_order_final" in takes else factory()


def flow(name, x, steps, denoise=gaussian, noise=silent):
    return driver.sample(denoise, solver_of(name), x, OPEN(steps), noise=noise)


def test_every_solver_states_its_order():
    stated = [*ORDERS, *WEAK_ORDERS, *JUMPS]
    assert set(stated) == set(FACTORIES) and len(stated) == len(FACTORIES)


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_variance_converges_at_its_order(name, x64):
    """On Gaussian data the sampler is linear, so responses to unit draws give its exact variance."""

    def error(steps):
        def unit(step, draw):  # row 0 is the start, then a row for each draw of each step
            rows = jnp.arange(1 + 2 * steps)
            return (rows == 1 + 2 * step + draw).astype(jnp.float64)[:, None]

        start = jnp.zeros((1 + 2 * steps, 1)).at[0].set(np.hypot(S, HIGH))
        out = driver.sample(gaussian, solver_of(name), start, OPEN(steps), noise=unit)
        return abs(float(jnp.sum(out**2)) / (S**2 + LOW**2) - 1)

    errors = [error(n) for n in (40, 80, 160)]
    rates = np.log2([errors[0] / errors[1], errors[1] / errors[2]])
    assert rates.min() > WEAK_ORDERS[name] - 0.3, rates
    assert errors[2] < 0.05


@pytest.mark.parametrize("name", FLOWS)
def test_converges_at_its_order_on_a_gaussian(name, x64):
    """Closed form: x(low) = x(high) sqrt((S^2 + low^2) / (S^2 + high^2))."""
    x = HIGH * jax.random.normal(jax.random.key(0), (16, 3))
    exact = x * np.sqrt((S**2 + LOW**2) / (S**2 + HIGH**2))
    errors = [jnp.abs(flow(name, x, n) - exact).max() for n in (40, 80, 160)]
    rates = np.log2([errors[0] / errors[1], errors[1] / errors[2]])
    assert rates.min() > ORDERS[name] - 0.3, rates
    assert errors[2] < 0.05


@pytest.mark.parametrize("name", FLOWS)
def test_converges_at_its_order_on_a_mixture(name, x64):
    x = HIGH * jax.random.normal(jax.random.key(0), (16, 3))
    exact = flow("rhork_4rk", x, 1000, mixture)
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
    run = functools.partial(flow, name, steps=6, denoise=mixture, noise=still)
    plain = run(x)
    chex.assert_trees_all_close(jax.jit(run)(x), plain, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda row: run(row[None])[0])(x)
    chex.assert_trees_all_close(mapped, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_through_the_sampler(name, x64):
    x = jax.random.normal(jax.random.key(0), (2, 3)) * HIGH

    def objective(scale):
        out = flow(name, x, 5, lambda y, sigma: scale * mixture(y, sigma), still)
        return jnp.sum(out**2)

    numeric = (objective(1.0 + 1e-6) - objective(1.0 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(objective)(1.0), numeric, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype, bound", [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_low_precision_is_stable(name, dtype, bound):
    x = jax.random.normal(jax.random.key(0), (8, 3)) * HIGH
    with jax.enable_x64(True):
        exact = np.asarray(flow(name, x.astype(jnp.float64), 20, noise=still))
    rough = flow(name, x.astype(dtype), 20, noise=still)
    assert rough.dtype == dtype
    assert np.abs(np.asarray(rough, np.float64) - exact).max() < bound


def module_of(name):
    """The file that a solver stands in."""
    for module in registry.known("solvers"):
        if name in getattr(importlib.import_module(f"fastdiff_jax.solvers.{module}"), "SOLVERS", {}):
            return module
    raise AssertionError(name)


@pytest.mark.parametrize("name", [name for name in NAMES if module_of(name) not in EXEMPT])
def test_compiles_one_network_body(name):
    """Steps of one structure share a scan, however many there are: the network is traced once for it."""
    traced = []

    def denoise(x, sigma):
        traced.append(1)
        return gaussian(x, sigma)

    def bodies(steps):
        traced.clear()
        prepared = driver.prepare(solver_of(name), OPEN(steps))
        jax.jit(functools.partial(driver.run, denoise, noise=silent)).lower(jnp.ones((1, 2)), prepared)
        plan = solver_of(name).plan(OPEN(steps))
        runs = driver.segments(plan)
        assert len(traced) == sum(solver_of(name).evaluations(entry) for entry, _, _ in runs)
        return len(runs)

    assert bodies(30) == bodies(9) <= 2


def tables():
    """Every solver of one call a step without noise whose numbers are all in a table."""
    found = {}
    for name in FLOWS:
        takes = inspect.signature(FACTORIES[name]).parameters
        if "history" in takes and module_of(name) not in EXEMPT:
            for target in ("data", "noise") if "target" in takes else (None,):
                options = {} if target is None else {"target": target}
                found[name, target] = FACTORIES[name](history=4, **options)
    return found


def test_table_solvers_of_one_size_are_one_executable():
    """One for each target of the history, counted as traces of the network: a program has one body of it."""
    traces, solvers = [], tables()

    def denoise(x, sigma):
        traces.append(1)
        return gaussian(x, sigma)

    run = jax.jit(functools.partial(driver.run, denoise))
    assert len(solvers) > 5
    for solver in solvers.values():
        run(jnp.ones((2, 3)), driver.prepare(solver, OPEN(8)))
    assert len(traces) == len({solver.step for solver in solvers.values()}) == 2
