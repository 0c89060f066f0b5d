"""Solvers on exact flows: coefficients, closed forms, costs, churn, shared programs, and what is refused."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import precond
from fastdiff_jax.solvers import driver, heun, multistep, named, sampling, schedules

S = 0.5  # standard deviation of the Gaussian data
POLYNOMIAL = schedules.polynomial(0.002, 80.0, 7.0)


def gaussian(x, sigma):
    """The exact denoiser of N(0, S^2)."""
    return S**2 / (S**2 + sigma**2) * x


def counted(calls):
    def denoise(x, sigma):
        jax.debug.callback(lambda: calls.append(1), ordered=True)
        return gaussian(x, sigma)

    return denoise


@given(st.integers(2, 60), st.floats(1e-4, 0.1), st.floats(1, 200), st.floats(1, 12), st.booleans())
@settings(deadline=None, max_examples=50)
def test_polynomial_levels_run_from_end_to_end(steps, low, high, rho, zero):
    sigmas = schedules.polynomial(low, high, rho, zero)(steps)
    assert sigmas.dtype == np.float64 and len(sigmas) == steps + 1
    assert sigmas[0] == high and sigmas[-1] == (0 if zero else low)
    assert (np.diff(sigmas) < 0).all()


def test_dpmpp_1m_is_euler():
    sigmas = POLYNOMIAL(7)
    for ours, theirs in zip(multistep.dpmpp_rows(sigmas, 1), multistep.euler_rows(sigmas)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_row_keeps_a_constant_prediction(order):
    """If all x0 are equal, x' = x0 + (sigma'/sigma)(x - x0); if all eps are, x' = x + (sigma' - sigma) eps."""
    sigmas = POLYNOMIAL(9)
    rows = multistep.dpmpp_rows(sigmas, order)
    np.testing.assert_allclose(rows.b.sum(1), 1 - rows.a, rtol=1e-9)
    rows = multistep.dpmpp_rows(sigmas, order, target="noise")
    np.testing.assert_allclose(rows.b.sum(1), np.diff(sigmas), rtol=1e-9)
    np.testing.assert_array_equal(rows.a, 1.0)


@pytest.mark.parametrize("target", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpmpp_converges_in_both_targets(order, target, x64):
    x = 10 * jax.random.normal(jax.random.key(0), (16, 3))
    exact = x * np.sqrt((S**2 + 0.1**2) / (S**2 + 10.0**2))

    def error(steps):
        sigmas = schedules.logsnr(0.1, 10.0, zero=False)(steps)
        solver = multistep.dpmpp(order, lower_order_final=False, target=target)
        return jnp.abs(driver.sample(gaussian, solver, x, sigmas) - exact).max()

    assert np.log2(error(80) / error(160)) > min(order, 2) - 0.3


def test_exponentials_are_what_they_are_defined_as():
    """phi_k+1 = sum_m H^(m+1) / (m+k+1)!, by the recursion and by the series that replaces it below 0.5."""
    h = np.array([1e-9, 0.1, 0.4999, 0.5001, 2.0])
    sigmas = np.exp(-np.append(0, np.cumsum(h)))
    for target, sign in (("data", -1), ("noise", 1)):
        found = multistep.exponentials(sigmas, target)
        np.testing.assert_allclose(found.h, h, rtol=1e-6)
        for k, phi in enumerate(found.phi, 1):
            exact = sum(found.signed ** (m + 1) / math.factorial(m + k) for m in range(40))
            np.testing.assert_allclose(phi, exact, rtol=1e-12)
        np.testing.assert_allclose(found.signed, sign * found.h)


def test_a_step_onto_zero_is_the_prediction():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    for solver in (multistep.euler(), multistep.dpmpp(3), multistep.dpmpp(3, target="noise")):
        out = driver.sample(gaussian, solver, x, np.array([2.0, 0.0]))
        chex.assert_trees_all_close(out, gaussian(x, 2.0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name, nfe",
    [("euler", 4), ("ddim", 4), ("dpmpp_1m", 4), ("dpmpp_2m", 5), ("dpmpp_3m", 6), ("heun", 9)],
)
def test_a_named_sampler_makes_exactly_the_calls_it_says(name, nfe):
    calls, plan = [], named.sampler(name, nfe, schedule=POLYNOMIAL)
    jax.block_until_ready(named.generate(counted(calls), plan, jnp.ones((2, 3))))
    jax.effects_barrier()
    assert len(calls) == nfe == driver.evaluations(plan.solver, plan.sigmas)


def test_a_known_prediction_saves_one_call():
    calls, x, sigmas = [], 80 * jnp.ones((2, 3)), POLYNOMIAL(4)
    known = gaussian(x, 80.0)
    out = driver.sample(counted(calls), multistep.euler(), x, sigmas, known=known)
    jax.effects_barrier()
    assert len(calls) == 3 == driver.evaluations(multistep.euler(), sigmas, known=True)
    chex.assert_trees_all_close(
        out, driver.sample(gaussian, multistep.euler(), x, sigmas), rtol=1e-6
    )


def test_table_solvers_of_one_length_share_one_executable_and_one_network_body():
    traces = []

    @jax.jit
    def run(x, steps):
        def denoise(x, sigma):
            traces.append(1)
            return gaussian(x, sigma)

        return driver.run(denoise, x, steps)

    solvers = [multistep.euler(history=3), *(multistep.dpmpp(k, history=3) for k in (1, 2, 3))]
    outs = [run(jnp.ones((2, 3)), driver.prepare(solver, POLYNOMIAL(6))) for solver in solvers]
    assert len(traces) == 1
    assert not np.allclose(outs[0], outs[2])
    chex.assert_trees_all_close(outs[0], outs[1], rtol=1e-5)


def test_trace_returns_states_and_predictions():
    x, sigmas = jnp.ones((2, 3)), POLYNOMIAL(5)
    trace = driver.sample(gaussian, heun.heun(), x, sigmas, trace=True)
    chex.assert_shape([trace.states, trace.predictions], [(6, 2, 3), (5, 2, 3)])
    chex.assert_trees_all_close(trace.states[0], x)
    chex.assert_trees_all_close(trace.states[-1], driver.sample(gaussian, heun.heun(), x, sigmas))
    chex.assert_trees_all_close(
        trace.predictions[2], gaussian(trace.states[2], sigmas[2]), rtol=1e-5
    )


def test_start_enters_the_grid_anywhere():
    x, sigmas = jnp.ones((2, 3)), POLYNOMIAL(6)
    run = jax.jit(lambda start: driver.sample(gaussian, multistep.euler(), x, sigmas, start=start))
    for start in (0, 2, 5):
        expected = driver.sample(gaussian, multistep.euler(), x, sigmas[start:])
        chex.assert_trees_all_close(run(start), expected, rtol=1e-5)
    chex.assert_trees_all_close(run(6), x)


def test_churn_keeps_the_marginal_and_draws_at_every_step():
    """Gaussian data and many steps: whatever the churn, the end has the data's deviation."""
    plan = named.sampler(
        "heun_churn", 119, schedule=POLYNOMIAL, s_churn=40.0, s_min=0.05, s_max=50.0
    )
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = driver.per_image(keys, (1,))
    latents = jax.random.normal(jax.random.key(1), (4000, 1))
    out = named.generate(gaussian, plan, latents, noise=drawn)
    assert abs(float(out.std()) - S) < 0.03
    with pytest.raises(ValueError, match="churn draws noise"):
        named.generate(gaussian, plan, latents)


def test_without_churn_it_is_heun():
    x, noise = 80 * jnp.ones((2, 3)), lambda step, draw: jnp.ones((2, 3))
    churned = driver.sample(gaussian, heun.heun_churn(), x, POLYNOMIAL(6), noise=noise)
    chex.assert_trees_all_close(
        churned, driver.sample(gaussian, heun.heun(), x, POLYNOMIAL(6)), rtol=1e-5
    )


def test_noise_of_an_image_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(0), 5)
    whole, part = driver.per_image(keys, (3,)), driver.per_image(keys[3:], (3,))
    chex.assert_trees_all_equal(whole(2, 1)[3:], part(2, 1))
    assert not np.allclose(whole(2, 1), whole(2, 0)) and not np.allclose(whole(2, 1), whole(1, 1))


def test_schedules_are_cut_and_rounded_to_the_model():
    discrete = precond.iddpm()
    config = schedules.clipped(dict(name="polynomial", sigma_min=1e-5, sigma_max=1e6), discrete)
    cut = schedules.build(config, discrete)
    sigmas = schedules.rounded(cut, discrete)(6)
    assert set(sigmas[:-1]) <= set(precond.iddpm_table()) and sigmas[0] == discrete.sigma_max


def test_levels_beyond_what_a_model_was_trained_for_are_refused():
    asked = dict(name="polynomial", sigma_min=0.01, sigma_max=300.0)
    with pytest.raises(ValueError, match=r"trained for noise levels from .* to 152.167; .* 300"):
        named.sampler("euler", 5, schedule=asked, precond=precond.vp())
    unsaid = named.sampler("euler", 5, schedule=dict(name="polynomial"), precond=precond.ve())
    assert unsaid.sigmas[0] == 80 and unsaid.sigmas[-2] == 0.02


@pytest.mark.parametrize(
    "name, nfe, options, words",
    [
        ("heun_churn", 6, dict(afs=True), "afs cannot guess"),
        ("generalised", 6, dict(afs=True, s_churn=1.0), "afs cannot guess"),
        ("euler", 2.5, {}, "whole number of network calls.*2.5"),
        ("euler", 4, dict(schedule="polynomial"), r"dict\(name=...\); got 'polynomial'"),
        ("scheduled", 4, dict(segments=("euler",)), "a segment is .*got 'euler'"),
        ("scheduled", 4, dict(segments=(("dpm_solver_fast", 2),)), "give its segment the option nfe"),
    ],
)
def test_samplers_that_cannot_be_are_one_line(name, nfe, options, words):
    with pytest.raises(ValueError, match=words):
        named.sampler(name, nfe, **{"schedule": schedules.polynomial(zero=False)} | options)


def test_samplers_of_a_model_are_made_by_request():
    class Model:
        precond = precond.edm()

    made = sampling.samplers({"two": {"name": "euler", "nfe": 2}}, Model, POLYNOMIAL, (3,))
    assert made["two"].nfe == 2


@pytest.mark.parametrize(
    "sigmas, words",
    [
        ([1.0, 2.0, 0.0], "strictly decrease"),
        ([2.0, 1.0, -1.0], "positive"),
        ([np.inf, 1.0], "finite"),
        ([1.0], "shape"),
    ],
)
def test_bad_levels_are_refused(sigmas, words):
    with pytest.raises(ValueError, match=words):
        driver.sample(gaussian, multistep.euler(), jnp.ones((1, 1)), np.array(sigmas))


@pytest.mark.parametrize(
    "name, nfe, options, words",
    [
        ("rk45", 4, {}, "'rk45'; known: ddim"),
        ("heun", 4, {}, "use 3 or 5"),
        ("euler", 0, {}, "at least one; got 0"),
        ("euler", 3, {"order": 2}, "no option 'order'"),
        ("dpmpp_2m", 3, {"target": "v"}, "data or noise; got target 'v'"),
    ],
)
def test_bad_requests_are_refused(name, nfe, options, words):
    with pytest.raises(ValueError, match=words):
        named.sampler(name, nfe, schedule=POLYNOMIAL, **options)
