"""The Sampler Scheduler: segments against runs of their own, histories, noise, costs, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import registry
from fastdiff_jax.solvers import driver, heun, multistep, named, schedules, stochastic
from fastdiff_jax.solvers.scheduled import scheduled

CLOSED = schedules.polynomial(0.01, 10.0)
SIGMAS = CLOSED(8)
X = 10 * np.random.default_rng(0).normal(size=(3, 2))


def mixture(x, sigma):
    """Two modes at +-1 of deviation 0.3, in every coordinate."""
    variance = 0.3**2 + sigma**2
    return (0.3**2 * x + sigma**2 * jnp.tanh(x / variance)) / variance


def noise(step, draw):
    return jax.random.normal(jax.random.fold_in(jax.random.key(1), 10 * step + draw), X.shape)


def run(solver, x=X, sigmas=SIGMAS, noise=noise):
    return driver.sample(mixture, solver, jnp.asarray(x), sigmas, noise=noise)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "dpmpp_2m", "dpm_2_a", "unipc_2"])
@pytest.mark.filterwarnings("ignore:the last segment")
def test_one_segment_is_the_plain_sampler(name, x64):
    """On levels that end at zero, where the rule for a segment's end changes nothing."""
    plain = registry.entries("solvers", "SOLVERS")[name]()
    chex.assert_trees_all_close(run(scheduled([(name, 8)])), run(plain), rtol=1e-12)
    assert driver.evaluations(scheduled([(name, 8)]), SIGMAS) == driver.evaluations(plain, SIGMAS)


def test_splitting_an_euler_run_changes_nothing(x64):
    whole = run(multistep.euler())
    for cut in range(1, 8):
        parts = run(scheduled([("euler", cut), ("euler", 8 - cut)]))
        chex.assert_trees_all_close(parts, whole, rtol=1e-12)


def test_splitting_heun_changes_it_by_an_euler_step(x64):
    split = scheduled([("heun", 3), ("heun", 5)])
    out = run(split)
    assert jnp.abs(out - run(heun.heun())).max() > 1e-3
    assert driver.evaluations(split, SIGMAS) == 5 + 9
    kept = [("heun", 3, {"lower_order_final": False}), ("heun", 5)]
    chex.assert_trees_all_close(run(scheduled(kept)), run(heun.heun()), rtol=1e-12)


def test_segments_are_runs_of_their_own_with_noise_by_the_whole_run_s_steps(x64):
    out = run(scheduled([("euler_a", 3), ("dpmpp_3m", 4), ("dpm_2", 1)]))
    x = run(stochastic.ddpm(), sigmas=SIGMAS[:4])
    x = run(multistep.dpmpp(3), x, SIGMAS[3:8])
    chex.assert_trees_all_close(out, run(multistep.euler(), x, SIGMAS[7:]), rtol=1e-12)

    later = run(scheduled([("euler", 3), ("euler_a", 4), ("euler", 1)]))
    x = run(multistep.euler(), sigmas=SIGMAS[:4])
    x = run(stochastic.ddpm(), x, SIGMAS[3:8], noise=lambda step, draw: noise(step + 3, draw))
    chex.assert_trees_all_close(later, run(multistep.euler(), x, SIGMAS[7:]), rtol=1e-12)


def test_a_carried_history_makes_one_run_of_two_segments(x64):
    parts = [("dpmpp_2m", 3, {"lower_order_final": False}), ("dpmpp_2m", 5)]
    whole = run(multistep.dpmpp(2))
    chex.assert_trees_all_close(run(scheduled(parts, carry_history=True)), whole, rtol=1e-12)
    assert jnp.abs(run(scheduled(parts)) - whole).max() > 1e-4


def test_a_carried_history_may_change_its_length_and_gain_noise(x64):
    """DPM-Solver++(3M) after a noisy segment is the row of the whole run on the same predictions."""
    ends = {"lower_order_final": False}
    solver = scheduled(
        [("sde_dpmpp_2m", 4, ends), ("dpmpp_3m", 4, ends)], carry_history=True
    )
    sigmas = schedules.polynomial(0.01, 10.0, zero=False)(8)
    trace = driver.sample(mixture, solver, jnp.asarray(X), sigmas, noise=noise, trace=True)
    row = multistep.dpmpp_rows(sigmas, 3, lower_order_final=False)
    expected = row.a[4] * trace.states[4]
    expected += sum(row.b[4, j] * trace.predictions[4 - j] for j in range(3))
    chex.assert_trees_all_close(trace.states[5], expected, rtol=1e-12)


def test_the_rest_goes_to_the_open_segment():
    solver = scheduled(({"name": "heun", "steps": 2}, ({"name": "dpm_2", "r": 0.4}, None), ("euler", 1)))
    plan = solver.plan(SIGMAS)
    assert [entry.segment for entry in plan] == [0, 0, 1, 1, 1, 1, 1, 2]
    assert [entry.calls for entry in plan] == [2, 1, 2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("nfe", [7, 13, 21])
def test_a_named_sampler_finds_the_steps_of_an_open_segment(nfe):
    segments = [("heun", 3), ("dpm_2", None), ("euler", 1)]
    made = named.sampler("scheduled", nfe, schedule=CLOSED, segments=segments)
    assert driver.evaluations(made.solver, made.sigmas) == nfe
    assert [entry.segment for entry in made.solver.plan(made.sigmas)].count(1) == (nfe - 5) // 2
    fixed = named.sampler("scheduled", 8, schedule=CLOSED, segments=[("heun", 3), ("dpm_2", 2)])
    assert len(fixed.sigmas) == 6


def test_equal_plans_share_an_executable():
    traces = []

    @jax.jit
    def program(x, steps):
        traces.append(1)
        return driver.run(mixture, x, steps)

    for high in (10.0, 20.0):
        sigmas = schedules.polynomial(0.01, high)(6)
        program(jnp.ones((1, 2)), driver.prepare(scheduled([("heun", 2), ("dpmpp_2m", 4)]), sigmas))
    assert len(traces) == 1


def test_a_noisy_end_is_warned_of():
    with pytest.warns(UserWarning, match="the last segment, euler_a, adds noise"):
        scheduled([("euler", 1), ("euler_a", 1)])


@pytest.mark.parametrize(
    "segments, options, words",
    [
        ([("heun", 3), ("dpm_2", 2)], {}, "3 of 8 steps are missing"),
        ([("heun", 6), ("dpm_2", 4)], {}, "2 too many for 8"),
        ([("heun", 8), ("dpm_2", None)], {}, "leave none for the rest of 8; use at least 9"),
        ([("heun", None), ("dpm_2", None)], {}, "only one segment .* got heun, dpm_2"),
        ([("heun", 0), ("dpm_2", 8)], {}, "at least one; got 0 of heun"),
        ([("heun", 2.5), ("dpm_2", 8)], {}, "whole number of steps, at least one; got 2.5"),
        ([("rk45", 8)], {}, "no solver 'rk45'; known: .*heun"),
        ([("dpm_2", 8, {"q": 1})], {}, "no option 'q'; known: r"),
        ([], {}, "at least one segment"),
        ([("heun", 4), ("dpmpp_2m", 4)], {"carry_history": True}, "heun .none that can be., dpmpp_2m"),
        ([("ipndm_2", 4), ("dpmpp_2m", 4)], {"carry_history": True}, "ipndm_2 .eps., dpmpp_2m .x0."),
    ],
)
def test_bad_plans_are_refused(segments, options, words):
    with pytest.raises(ValueError, match=words):
        run(scheduled(segments, **options))
