"""Single-step solvers: order conditions, what they are exact on, their calls, and what is refused."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax.solvers import driver, heun, multistep, named, schedules, singlestep

OPEN = schedules.polynomial(0.01, 10.0, zero=False)
CLOSED = schedules.polynomial(0.01, 10.0)
FACTORIES = singlestep.SOLVERS


def gaussian(x, sigma):
    return 0.25 / (0.25 + sigma**2) * x


def ends(name, sigmas, denoise=gaussian, **options):
    x = jax.random.normal(jax.random.key(0), (3, 2)) * sigmas[0]
    return driver.sample(denoise, FACTORIES[name](**options), x, sigmas), x


@pytest.mark.parametrize("name", singlestep.TABLEAUS)
def test_tableaus_meet_their_order_conditions(name):
    """All rooted trees of up to four nodes (Butcher): sum_i b_i phi_i = 1 / gamma."""
    points, b = singlestep.TABLEAUS[name]
    order, b = int(name[0]), np.array(b)
    matrix = np.zeros((len(b), len(b)))
    for i, row in enumerate(points, 1):
        matrix[i, : len(row)] = row
    c = matrix.sum(1)
    trees = [(1, 1 + 0 * c, 1), (2, c, 2), (3, c**2, 3), (3, matrix @ c, 6)]
    trees += [(4, c**3, 4), (4, c * (matrix @ c), 8), (4, matrix @ c**2, 12)]
    trees += [(4, matrix @ matrix @ c, 24)]
    for nodes, weights, density in trees:
        if nodes <= order:
            np.testing.assert_allclose(b @ weights, 1 / density, rtol=1e-14)
    assert any(abs(b @ w - 1 / g) > 1e-3 for n, w, g in trees if n == 4) == (order == 3)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_constant_prediction_is_carried_exactly(name, x64):
    """With x0 constant the flow is a straight line: x' = x0 + (sigma'/sigma) (x - x0)."""
    for sigmas in (OPEN(4), CLOSED(4)):
        out, x = ends(name, sigmas, lambda x, sigma: jnp.full_like(x, 0.7))
        exact = 0.7 + sigmas[-1] / sigmas[0] * (x - 0.7)
        chex.assert_trees_all_close(out, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name, degree", [("dpm_2", 0), ("dpm_solver_3s", 1)])
def test_exponential_solvers_are_exact_on_polynomials_in_log_sigma(name, degree, x64):
    """eps = lambda^degree, lambda = -ln sigma: x' = x - integral of sigma eps dlambda, in closed form."""

    def denoise(x, sigma):
        return x - sigma * (-jnp.log(sigma)) ** degree

    def antiderivative(sigma):  # of -sigma lambda^degree over lambda
        return sigma * (-np.log(sigma) + 1) ** degree

    sigmas = OPEN(3)
    out, x = ends(name, sigmas, denoise)
    exact = x + antiderivative(sigmas[-1]) - antiderivative(sigmas[0])
    chex.assert_trees_all_close(out, exact, rtol=1e-12)


def test_dpmpp_2s_predicts_data_where_dpm_2_predicts_noise(x64):
    """x0 linear in log sigma is second-order exact up to e^-h: the slope's weight is h (1 - e^-h) / 2."""
    sigmas = np.array([2.0, 1.0])
    out, x = ends("dpmpp_2s", sigmas, lambda x, sigma: 0 * x - jnp.log(sigma))
    middle = np.log(np.sqrt(2.0))
    chex.assert_trees_all_close(out, x / 2 - middle / 2, rtol=1e-12)


def test_a_tableau_of_one_correction_would_be_heun(x64):
    tableau = singlestep.Tableau(((1,),), (1 / 2, 1 / 2))
    formulas = {1: singlestep.euler, 2: partial(singlestep.runge_kutta, tableau=tableau)}
    solver = singlestep.singlestep(formulas, partial(singlestep.calls, stages=2))
    x = 10 * jax.random.normal(jax.random.key(0), (3, 2))
    ours, theirs = (driver.sample(gaussian, s, x, CLOSED(5)) for s in (solver, heun.heun()))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
def test_one_step_onto_zero_is_the_prediction(name):
    out, x = ends(name, np.array([2.0, 0.0]))
    chex.assert_trees_all_close(out, gaussian(x, 2.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [singlestep.dpm_2, heun.heun])
def test_lower_order_final_is_an_euler_step_at_the_end(solver, x64):
    x, sigmas = 10 * jnp.ones((1, 2)), OPEN(4)
    lowered = driver.sample(gaussian, solver(lower_order_final=True), x, sigmas)
    before = driver.sample(gaussian, solver(), x, sigmas[:-1])
    chex.assert_trees_all_close(
        lowered, driver.sample(gaussian, multistep.euler(), before, sigmas[-2:]), rtol=1e-12
    )
    assert driver.evaluations(solver(lower_order_final=True), sigmas) == 7


@given(st.integers(1, 40), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_dpm_solver_fast_makes_any_number_of_calls(nfe, zero, afs):
    schedule = schedules.polynomial(zero=zero)
    made = named.sampler("dpm_solver_fast", nfe, schedule=schedule, afs=afs)
    plan = made.solver.plan(made.sigmas)
    assert sum(plan) - afs == nfe and driver.evaluations(made.solver, made.sigmas, afs) == nfe
    assert list(plan) == sorted(plan, reverse=True) and (not zero or plan[-1] == 1)


@pytest.mark.parametrize("nfe, orders", [(9, (3, 3, 2, 1)), (10, (3, 3, 3, 1)), (11, (3, 3, 3, 2))])
def test_dpm_solver_fast_mixes_the_paper_s_orders(nfe, orders):
    made = named.sampler("dpm_solver_fast", nfe, schedule=OPEN)
    assert made.solver.plan(made.sigmas) == orders


def test_the_mixed_run_is_its_parts(x64):
    x, sigmas = 10 * jnp.ones((1, 2)), OPEN(3)
    mixed = driver.sample(gaussian, singlestep.dpm_solver_fast(6), x, sigmas)
    for name, i in (("dpm_solver_3s", 0), ("dpm_2", 1)):
        x = driver.sample(gaussian, FACTORIES[name](), x, sigmas[i : i + 2])
    parts = driver.sample(gaussian, multistep.euler(), x, sigmas[2:])
    chex.assert_trees_all_close(mixed, parts, rtol=1e-12)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: singlestep.dpm_2(r=0.0), r"in \(0, 1\]; got 0"),
        (lambda: singlestep.dpmpp_2s(r=1.5), "got 1.5"),
        (lambda: singlestep.rhork("5rk"), "no tableau '5rk'; known: 3kutta"),
        (lambda: singlestep.dpm_solver_fast(0), "at least one network call; got nfe 0"),
        (lambda: named.sampler("rhork_4rk", 6, schedule=OPEN), "use 4 or 8"),
    ],
)
def test_bad_requests_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
