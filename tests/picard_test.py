"""Picard iteration: equal to the step-by-step run where it must be, what it costs, and what is refused."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import registry
from fastdiff_jax.runtime import parallel
from fastdiff_jax.solvers import driver, heun, multistep, named, picard, schedules

N, HIGH = 12, 10.0
SIGMAS = schedules.polynomial(0.01, HIGH, 7.0)(N)
SCALE = picard.unit_scale(SIGMAS)
MAKERS = registry.entries("solvers", "SOLVERS")
# With one history length those that share a step share a program.
ONE_CALL = {name: {"history": 3} for name in ("euler", "dpmpp_2m", "dpmpp_3m", "ipndm_3")} | {"ddpm": {}}


def mixture(x, sigma):
    """The exact denoiser of modes at +-1 of deviation 0.3, in every coordinate."""
    variance = 0.3**2 + sigma**2
    return (0.3**2 * x + sigma**2 * jnp.tanh(x / variance)) / variance


def latents(batch=3, dtype=jnp.float64):
    return HIGH * jax.random.normal(jax.random.key(0), (batch, 4), dtype)


NOISE = np.random.default_rng(1).standard_normal((N, 3, 4))


def noise(step, draw):
    assert draw == 0
    return jnp.asarray(NOISE)[step]


@functools.partial(jax.jit, static_argnames="trace")
def iterated(x, windows, trace=False):
    return picard.run(mixture, x, windows, noise=noise, trace=trace)


@jax.jit
def stepwise(x, steps):
    return driver.run(mixture, x, steps, noise=noise, trace=True).states


def both(name, **options):
    """The run step by step, in the coordinates z, and the one by windows with all its passes."""
    solver, x = MAKERS[name](**ONE_CALL[name]), latents()
    states = stepwise(x, driver.prepare(solver, SIGMAS, x.dtype))
    options = {"scale": SCALE, **options}
    windows = picard.prepare(solver, SIGMAS, x.dtype, **options)
    return SCALE[:, None, None] * states, iterated(x, windows, trace=True)


@pytest.mark.parametrize("name", ONE_CALL)
def test_a_window_of_one_is_the_run_step_by_step(name, x64):
    states, run = both(name, window=1, tolerance=0.1)
    assert run.passes == run.evaluations == N
    chex.assert_trees_all_close(run.trace.buffers[-1], states, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close(run.x, states[-1] / SCALE[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ONE_CALL)
def test_after_k_passes_the_first_k_states_are_exact(name, x64):
    """However large the window: each pass starts from an exact state, with an exact history."""
    for window in (4, N, N + 5):
        states, run = both(name, window=window, tolerance=1e-9)
        for k in range(int(run.passes) + 1):
            exact = run.trace.buffers[k][: k + 1]
            chex.assert_trees_all_close(exact, states[: k + 1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_a_hundred_steps_take_a_third_of_the_calls_in_a_row(name):
    """At the tolerance and window of launch/paradigms.py, on the schedule of the digits teacher."""
    common = dict(schedule=schedules.polynomial(0.002, 80.0))
    request = parallel.Request()
    settings = dict(window=request.window, tolerance=request.tolerance)
    one, many = (named.sampler(name, 100, parallel=p, **common) for p in (None, settings))
    z = jax.random.normal(jax.random.key(0), (8, 4))
    run = jax.jit(lambda z: named.run(mixture, many, z))(z)
    assert run.passes <= 33 and run.evaluations > 100
    chex.assert_trees_all_close(run.x, named.generate(mixture, one, z), atol=5e-3)


@pytest.mark.parametrize("name", ONE_CALL)
def test_the_difference_goes_to_zero_with_the_tolerance(name, x64):
    errors = []
    for tolerance in (1e-2, 1e-5, 1e-8):
        states, run = both(name, window=4, tolerance=tolerance)
        errors.append(float(jnp.abs(run.x - states[-1]).max()))
        assert run.passes <= N
    assert errors[1] < 1e-4 and errors[2] < 1e-7, errors


def test_a_pass_takes_as_many_steps_as_do_not_change(x64):
    """Steps that do not depend on x are exact after one pass; the next one sees that, and takes the window."""

    def drift(denoise, _, x, at, *, plan):
        return x + 1, None

    solver = heun.heun()._replace(step=drift, plan=lambda sigmas: (1,) * (len(sigmas) - 1))
    run = picard.picard(mixture, solver, latents(), SIGMAS, window=4, tolerance=1e-9, trace=True)
    # Of a window that no state of which was written before, only the first step counts.
    expected = [[0, 4], [1, 5], [5, 9], [6, 10], [10, 12], [11, 12]]
    assert np.asarray(run.trace.ranges[: run.passes]).tolist() == expected
    chex.assert_trees_all_close(run.x, latents() + N, rtol=1e-12)


def test_the_costs_are_counted_call_by_call(x64):
    calls = []

    def watched(x, sigma):
        jax.debug.callback(lambda sigma: calls.append(float(sigma)), sigma)
        return mixture(x, sigma)

    run = picard.picard(watched, multistep.euler(), latents(), SIGMAS, window=5, tolerance=1e-3, trace=True)
    jax.block_until_ready(run)
    jax.effects_barrier()
    passes, ranges = int(run.passes), np.asarray(run.trace.ranges)
    assert len(calls) == 5 * passes < 5 * N  # with what fills up the last windows
    assert int(run.evaluations) == np.diff(ranges[:passes]).sum()
    assert not ranges[passes:].any() and (run.trace.errors[passes:] == picard.OUTSIDE).all()
    assert np.isclose(min(calls), SIGMAS[-2])  # nothing is evaluated at zero


def test_a_restarted_history_is_another_result(x64):
    """Each window begins with a step of first order, so two steps of DPM-Solver++(2M) a window differ."""
    states, run = both("dpmpp_2m", window=2, tolerance=1e-9, restart=True)
    assert jnp.abs(run.x - states[-1]).max() > 1e-3
    states, run = both("euler", window=2, tolerance=1e-9, restart=True)
    chex.assert_trees_all_close(run.x, states[-1], atol=1e-8)


def test_the_slowest_image_decides(x64):
    """A settled image waits: the passes of a batch are at least those of each of its images."""
    solver, x = multistep.euler(), latents(4)
    options = dict(sigmas=SIGMAS, window=6, tolerance=1e-3, scale=SCALE)
    run = functools.partial(picard.picard, mixture, solver, **options)
    alone = [int(run(x=row[None]).passes) for row in x]
    assert int(run(x=x).passes) >= max(alone)


@given(st.sampled_from([1, 4, 14]), st.floats(1e-4, 0.3), st.booleans())
@settings(deadline=None, max_examples=20)
def test_every_pass_gains_a_step(window, tolerance, restart):
    windows = picard.prepare(
        multistep.dpmpp(2), SIGMAS, window=window, tolerance=tolerance, scale=SCALE, restart=restart
    )
    run = iterated(latents(dtype=jnp.float32), windows, trace=True)
    passes, ranges = int(run.passes), np.asarray(run.trace.ranges)[: int(run.passes)]
    assert 1 <= passes <= N and passes <= int(run.evaluations) <= passes * min(window, N)
    assert ranges[0, 0] == 0 and ranges[-1, 1] == N and (np.diff(ranges[:, 0]) >= 1).all()
    assert (ranges[:, 1] == np.minimum(ranges[:, 0] + window, N)).all()
    chex.assert_tree_all_finite(run.x)


def test_levels_tolerances_and_scales_share_one_executable():
    traces = []

    @jax.jit
    def run(x, windows):
        traces.append(1)
        return picard.run(mixture, x, windows).x

    x, other = latents(dtype=jnp.float32), schedules.polynomial(0.02, HIGH, 5.0)(N)
    for sigmas, tolerance in ((SIGMAS, 1e-2), (other, 1e-3)):
        for solver in (multistep.dpmpp(2), multistep.euler(history=2)):
            out = run(x, picard.prepare(solver, sigmas, window=4, tolerance=tolerance))
            expected = driver.sample(mixture, solver, x, sigmas)
            chex.assert_trees_all_close(out, expected, atol=20 * tolerance)
    assert len(traces) == 1


@pytest.mark.parametrize("dtype, bound", [(jnp.float32, 1e-2), (jnp.bfloat16, 0.1)])
def test_low_precision_is_stable(dtype, bound):
    x = latents(dtype=jnp.float32).astype(dtype)
    options = dict(window=6, tolerance=1e-3, scale=SCALE)
    out = picard.picard(mixture, multistep.euler(), x, SIGMAS, **options).x
    assert out.dtype == dtype
    exact = driver.sample(mixture, multistep.euler(), x.astype(jnp.float32), SIGMAS)
    chex.assert_trees_all_close(out.astype(jnp.float32), exact, atol=bound)


def test_a_denoiser_with_a_condition_sees_the_images_rows(x64):
    """The window is mapped over, so what belongs to the B images is not repeated by hand."""
    shift = jnp.arange(3.0)[:, None]

    def denoise(x, sigma):
        assert x.shape == (3, 4)
        return mixture(x, sigma) + shift

    x = latents()
    run = picard.picard(denoise, multistep.euler(), x, SIGMAS, window=5, tolerance=1e-8, scale=SCALE)
    chex.assert_trees_all_close(run.x, driver.sample(denoise, multistep.euler(), x, SIGMAS), atol=1e-6)


class TestNamed:
    """Parallel samplers as configs ask for them."""

    SCHEDULE = dict(name="polynomial", sigma_min=0.01, sigma_max=HIGH, zero=True)
    OPEN = SCHEDULE | dict(zero=False)

    def made(self, name="euler", schedule=SCHEDULE, **options):
        return named.sampler(name, 20, schedule=schedule, **options)

    @pytest.mark.parametrize(
        "options", [{}, {"threshold": True}, {"schedule": OPEN, "denoise_to_zero": True}]
    )
    def test_gives_what_its_solver_gives_in_fewer_calls_in_a_row(self, options):
        x = jax.random.normal(jax.random.key(0), (4, 3))
        plain, fast = self.made(**options), self.made(**options, parallel=dict(window=10, tolerance=1e-4))
        run = jax.jit(functools.partial(named.run, mixture))
        sequential, at_once = run(named.prepare(plain), x), run(named.prepare(fast), x)
        assert sequential.passes == sequential.evaluations == 20
        assert at_once.passes <= 14 and at_once.evaluations > 20
        chex.assert_trees_all_close(at_once.x, sequential.x, atol=2e-3)
        chex.assert_trees_all_equal(named.generate(mixture, plain, x), named.run(mixture, plain, x).x)

    @pytest.mark.parametrize(
        "name, parallel, more, words",
        [
            ("euler", dict(window=0, tolerance=0.1), {}, "at least one; got 0"),
            ("euler", dict(window=4, tolerance=0.0), {}, "positive and finite; got 0"),
            ("euler", dict(window=4), {}, "parallel needs the setting tolerance"),
            ("euler", dict(window=4, tolerance=0.1, size=3), {}, "no setting size; known: window"),
            ("dpm_2", dict(window=4, tolerance=0.1), {"schedule": OPEN}, "this one's make 2:"),
            ("euler", dict(window=4, tolerance=0.1), {"afs": True}, "drop one of them"),
        ],
    )
    def test_bad_requests_are_refused(self, name, parallel, more, words):
        with pytest.raises(ValueError, match=re.escape(words)):
            self.made(name, parallel=parallel, **more)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(window=0), "at least one; got 0"),
        (dict(window=1.5), "whole number of steps, at least one; got 1.5"),
        (dict(window="4"), "at least one; got '4'"),
        (dict(tolerance=-1.0), "positive and finite; got -1"),
        (dict(tolerance=float("nan")), "positive and finite; got nan"),
        (dict(scale=np.ones(N)), f"scale is ({N + 1},) for these levels; got shape ({N},)"),
        (dict(scale=np.zeros(N + 1)), "scale is finite and positive; got 0 to 0"),
        (dict(variance=np.ones(N + 1)), f"variance is ({N},)"),
        (dict(variance=-np.ones(N)), "variance is finite and not negative"),
        (dict(noise=lambda step, draw: jnp.ones((2, 4))), "shape (3, 4); got (2, 4)"),
        (dict(x=jnp.ones((0, 4))), "at least one image; got shape (0, 4)"),
        (dict(solver=heun.heun()), "this one's make 1 or 2: use a multistep solver"),
    ],
)
def test_bad_input_is_refused(options, words):
    x, solver = options.pop("x", latents(dtype=jnp.float32)), options.pop("solver", multistep.euler())
    with pytest.raises(ValueError, match=re.escape(words)):
        picard.picard(mixture, solver, x, SIGMAS, **({"window": 3, "tolerance": 0.1} | options))


def test_a_step_that_calls_the_network_twice_is_refused():
    def twice(denoise, _, x, at, *, plan):
        return denoise(driver.predict(denoise, x, at), at.sigma), None

    solver = heun.heun()._replace(step=twice, plan=lambda sigmas: (1,) * (len(sigmas) - 1))
    with pytest.raises(ValueError, match="no network call but the first"):
        picard.picard(mixture, solver, latents(dtype=jnp.float32), SIGMAS, window=3, tolerance=0.1)


def test_a_solver_that_needs_noise_says_so():
    with pytest.raises(ValueError, match="pass noise"):
        picard.picard(mixture, MAKERS["ddpm"](), latents(dtype=jnp.float32), SIGMAS, window=3, tolerance=0.1)


class TestCommand:
    """launch/paradigms.py, on a teacher with fresh weights."""

    SMOKE = ["--config", "configs/lab_edm.py:smoke", "--nfe", "8", "--window", "4", "--num", "2"]

    @pytest.fixture
    def fresh(self, monkeypatch):
        """Weights that were not trained, in place of a finished run's."""
        monkeypatch.setattr(parallel.commands, "product", self.initial)

    @staticmethod
    def initial(job, run, mesh):
        return job.method.weights(job.method.init(jax.random.key(0), {}))

    def test_compares_both_ways(self, fresh, capsys):
        more = ["--solvers", "euler,ddpm", "--tolerance", "1e-5"]
        assert parallel.main(["paradigms.py", *self.SMOKE, *more]) == 0
        rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
        assert [row[0].strip() for row in rows[2:]] == ["euler", "ddpm"]
        for row in rows[2:]:
            steps, depth, evaluations, largest = (float(value) for value in row[1:5])
            assert steps == 8 and 2 <= depth <= 8 and depth <= evaluations <= 4 * depth and largest < 1e-3

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--solvers", "heun"], "heun cannot make exactly 8"),
            (["--solvers", "rk45"], "no solver 'rk45'"),
            (["--tolerance", "0"], "a tolerance is positive"),
            (["--window", "0"], "--window"),
            (["--workdir", "{folder}"], "{folder}"),
        ],
    )
    def test_refusals_are_one_line(self, arguments, words, capsys, tmp_path):
        """The last one: nothing is trained there."""
        arguments = [argument.format(folder=tmp_path) for argument in arguments]
        assert parallel.main(["paradigms.py", *self.SMOKE, *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and error[0].startswith("error: ")
        assert words.format(folder=tmp_path) in error[0]

    def test_a_student_is_refused(self, capsys):
        assert parallel.main(["paradigms.py", "--config", "configs/sid_digits.py:smoke"]) == 2
        assert "use --config edm_digits:smoke" in capsys.readouterr().err
