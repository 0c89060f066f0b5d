"""UniPC: what predictor and corrector integrate exactly, what they cost, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax.solvers import driver, named, schedules, unipc

POLYNOMIAL = schedules.polynomial(0.002, 80.0, 7.0)
OPEN = schedules.logsnr(0.1, 20.0, zero=False)
S = 0.5
EVERY = [
    (order, variant, target)
    for order in (1, 2, 3)
    for variant in ("bh1", "bh2")
    for target in ("data", "noise")
]


def gaussian(x, sigma):
    return S**2 / (S**2 + sigma**2) * x


def increments(sigmas, target, degree):
    """x' - a x over each step, for predictions (-ln sigma)^degree."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    found = []
    for high, low in zip(sigmas[:-1], sigmas[1:]):
        start, h = -np.log(high), np.log(high / low)
        at = start + h * (1 + nodes) / 2
        density = low * np.exp(at) if target == "data" else -np.exp(-at)
        found.append(h / 2 * weights @ (density * at**degree))
    return np.array(found)


@pytest.mark.parametrize("order, variant, target", EVERY)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_constant_predictions_are_exact(order, variant, target, zero, steps, x64):
    """x0 known: x' = x0 + (sigma'/sigma)(x - x0); eps known: x' = x + (sigma' - sigma) eps."""
    sigmas = schedules.polynomial(0.05, 20.0, 7.0, zero)(steps)
    x, m = 20 * jax.random.normal(jax.random.key(0), (2, 4, 3))

    def denoise(x, sigma):
        return m if target == "data" else x - sigma * m

    ratio = sigmas[-1] / sigmas[0]
    exact = m + ratio * (x - m) if target == "data" else x + (sigmas[-1] - sigmas[0]) * m
    out = driver.sample(denoise, unipc.unipc(order, variant, target), x, sigmas)
    chex.assert_trees_all_close(out, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order, variant, target", EVERY)
def test_polynomials_in_the_log_signal_to_noise_ratio_are_exact(order, variant, target):
    """Up to the orders that are solved for: the predictor's at 3, the corrector's from 2 on."""
    sigmas = OPEN(8) * np.linspace(1, 0.7, 9)  # uneven in lambda
    rows = unipc.rows(sigmas, order, variant, target, lower_order_final=False)
    lambdas = -np.log(sigmas)
    for degree in range(order + 1):
        m, exact = lambdas**degree, increments(sigmas, target, degree)
        for i in range(order - 1, 8):
            past = m[i - order + 1 : i + 1][::-1]
            if degree == 0 or (order == 3 and degree < 3):
                np.testing.assert_allclose(rows.b[i] @ past, exact[i], rtol=1e-8, atol=1e-9)
            if degree == 0 or order > 1:
                corrected = rows.c[i] @ past + rows.new[i] * m[i + 1]
                np.testing.assert_allclose(corrected, exact[i], rtol=1e-8, atol=1e-9)


def test_the_corrector_of_order_one_is_the_mean_of_both_ends():
    """One step of a run shorter than its order: x' = a x + (1 - a) (m + m')/2, with m' from Euler's end."""
    x, sigmas = jnp.full((2, 3), 3.0), np.array([2.0, 0.5])
    m = gaussian(x, 2.0)
    reached = x / 4 + 0.75 * m
    exact = x / 4 + 0.75 * (m + gaussian(reached, 0.5)) / 2
    out = driver.sample(gaussian, unipc.unipc(2), x, sigmas)
    chex.assert_trees_all_close(out, exact, rtol=1e-6)


def test_the_variants_part_only_where_a_weight_is_not_solved_for():
    one, other = (unipc.rows(OPEN(8), 3, variant, "data", False) for variant in unipc.VARIANTS)
    np.testing.assert_allclose(one.b[2:], other.b[2:], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.c[1:], other.c[1:], rtol=1e-9, atol=1e-12)
    assert not np.isclose(one.b[1, 0], other.b[1, 0], rtol=1e-3)
    assert not np.isclose(one.c[0, 0], other.c[0, 0], rtol=1e-3)


@pytest.mark.parametrize(
    "order, sigmas, calls",
    [
        (1, [9.0, 1.0], [1]),
        (2, [9.0, 1.0], [2]),
        (2, [9.0, 0.0], [1]),
        (3, [9.0, 3.0, 1.0], [2, 1]),
        (3, [9.0, 3.0, 0.0], [2, 0]),
        (3, [9.0, 3.0, 2.0, 1.0], [2, 1, 0]),
        (2, [9.0, 4.0, 3.0, 2.0, 1.0], [2, 1, 1, 0]),
    ],
)
def test_costs(order, sigmas, calls):
    sigmas, solver, made = np.array(sigmas), unipc.unipc(order), []

    def denoise(x, sigma):
        made.append(float(sigma))
        return gaussian(x, sigma)

    assert [solver.evaluations(entry) for entry in solver.plan(sigmas)] == calls
    with jax.disable_jit():
        driver.sample(denoise, solver, jnp.ones((2, 3)), sigmas)
    np.testing.assert_allclose(made, sigmas[: sum(calls)])
    assert driver.evaluations(solver, sigmas) == sum(calls)


def test_orders_rise_and_fall():
    """Weights of zero say how far back each step looks."""
    sigmas = POLYNOMIAL(6)
    falling, flat = (unipc.rows(sigmas, 3, "bh2", "data", final).b for final in (True, False))
    assert [int((b != 0).sum()) for b in falling] == [1, 2, 3, 3, 2, 1]
    assert [int((b != 0).sum()) for b in flat] == [1, 2, 3, 3, 3, 1]  # never onto zero


def test_a_trace_holds_corrected_states():
    x, sigmas, solver = 20 * jnp.ones((2, 3)), OPEN(5), unipc.unipc(3)
    trace = driver.sample(gaussian, solver, x, sigmas, trace=True)
    chex.assert_shape([trace.states, trace.predictions], [(6, 2, 3), (5, 2, 3)])
    chex.assert_trees_all_close(trace.states[-1], driver.sample(gaussian, solver, x, sigmas))
    rows = solver.table(sigmas)
    m = gaussian(x, sigmas[0])
    reached = rows.a[0] * x + rows.b[0, 0] * m
    corrected = rows.a[0] * x + rows.c[0, 0] * m + rows.new[0] * gaussian(reached, sigmas[1])
    chex.assert_trees_all_close(trace.states[1], corrected, rtol=1e-5)
    assert not np.allclose(trace.states[1], reached, rtol=1e-3)
    assert np.isnan(trace.predictions[-1]).all()  # the last step calls nothing


def test_a_known_first_prediction_saves_the_first_call():
    x, sigmas, made = 20 * jnp.ones((2, 3)), OPEN(5), []

    def denoise(x, sigma):
        made.append(float(sigma))
        return gaussian(x, sigma)

    with jax.disable_jit():
        known = gaussian(x, sigmas[0])
        out = driver.sample(denoise, unipc.unipc(2), x, sigmas, known=known)
    np.testing.assert_allclose(made, sigmas[1:-1], rtol=1e-6)
    chex.assert_trees_all_close(out, driver.sample(gaussian, unipc.unipc(2), x, sigmas), rtol=1e-5)


def test_a_named_sampler_takes_the_options():
    sampler = named.sampler("unipc_3", 5, schedule=OPEN, variant="bh1", target="noise")
    assert len(sampler.sigmas) == 6 and sampler.solver.step is unipc.from_noise
    with pytest.raises(ValueError, match="use 2"):
        named.sampler("unipc_3", 1, schedule=OPEN)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: unipc.unipc(4), "UniPC has orders 1 to 3; got 4"),
        (lambda: unipc.unipc(2, variant="bh3"), "variants bh1 and bh2; got 'bh3'"),
        (lambda: unipc.unipc(2, target="v"), "data or noise; got target 'v'"),
        (
            lambda: driver.sample(gaussian, unipc.unipc(2), jnp.ones((1, 1)), OPEN(4), start=1),
            "cannot begin inside",
        ),
    ],
)
def test_bad_requests_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
