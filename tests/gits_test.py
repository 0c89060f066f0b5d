"""GITS: paths against all paths, distances and costs in closed form, the search, and its command."""

import itertools
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import precond
from fastdiff_jax.runtime import assemble, checkpoint, commands, experiment, search
from fastdiff_jax.solvers import driver, gits, heun, multistep, sampling, schedules
from fastdiff_jax.types import Solver

FINE = schedules.polynomial(0.002, 80.0, 7.0, zero=False)


def mixture(x, sigma):
    """Two modes at +-1 of deviation 0.3, in every coordinate."""
    variance = 0.3**2 + sigma**2
    return (0.3**2 * x + sigma**2 * jnp.tanh(x / variance)) / variance


def cheapest(costs, steps, coeff):
    """By trying all paths; of equals the one that comes first in the alphabet."""
    last, best = len(costs) - 1, None
    for middle in itertools.combinations(range(1, last), steps - 1):
        path = (0, *middle, last)
        total = sum(coeff**k * costs[i, j] for k, (i, j) in enumerate(itertools.pairwise(path)))
        if best is None or total < best[0]:
            best = total, path
    return list(best[1])


@st.composite
def problems(draw):
    size = draw(st.integers(2, 8))
    values = draw(st.lists(st.integers(-3, 9), min_size=size**2, max_size=size**2))
    return np.reshape(np.array(values, float), (size, size)), draw(st.integers(1, size - 1))


@given(problems(), st.sampled_from([0.5, 1.0, 2.0]))
@settings(deadline=None, max_examples=200)
def test_the_path_is_the_best_of_all_paths(problem, coeff):
    """Small whole numbers add up exactly, so equally good paths are met, and must be the first of them."""
    costs, steps = problem
    assert gits.path(costs, steps, coeff).tolist() == cheapest(costs, steps, coeff)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 2))
@settings(deadline=None, max_examples=50)
def test_the_path_is_the_best_of_all_paths_for_any_numbers(seed, coeff):
    costs = np.random.default_rng(seed).standard_normal((9, 9))
    for steps in (1, 4, 8):
        assert gits.path(costs, steps, coeff).tolist() == cheapest(costs, steps, coeff)


def test_squared_lengths_are_shared_evenly_and_later_ones_shrink_by_the_coefficient():
    """sum_k coeff^k h_k^2 under sum h_k = 12 is least for h_k proportional to coeff^-k."""
    index = np.arange(13)
    squares = (index[:, None] - index) ** 2.0
    assert gits.path(squares, 4, 1.0).tolist() == [0, 3, 6, 9, 12]
    assert gits.path(squares, 2, 2.0).tolist() == [0, 8, 12]
    assert gits.path(squares, 2, 0.5).tolist() == [0, 4, 12]
    assert gits.path(squares, 1).tolist() == [0, 12] and gits.path(squares, 12).tolist() == [*range(13)]


def test_of_equals_the_smallest_index():
    assert gits.path(np.zeros((9, 9)), 4).tolist() == [0, 1, 2, 3, 8]


def test_only_jumps_ahead_count():
    costs = np.random.default_rng(0).standard_normal((7, 7))
    other = np.where(np.triu(np.ones((7, 7)), 1), costs, np.nan)
    np.testing.assert_array_equal(gits.path(costs, 3), gits.path(other, 3))


def test_deviation_is_the_distance_from_the_line(x64):
    start, end = jnp.array([[0.0, 0, 0], [1, 1, 1]]), jnp.array([[3.0, 0, 0], [1, 1, 5]])
    points = jnp.array([[[1.0, 3, 4], [1, 1, 2]], [[-7, 0, 0], [4, 5, 9]]])
    chex.assert_trees_all_close(gits.deviation(points, start, end), jnp.array([[5.0, 0], [0, 5]]), atol=1e-12)
    # Images are flattened; an end is on the line; a line of no length is a point.
    pictures = jax.random.normal(jax.random.key(0), (4, 3, 2, 2, 1))
    bent = gits.deviation(pictures, pictures[0], pictures[-1])
    chex.assert_shape(bent, (4, 3))
    chex.assert_trees_all_close(bent[jnp.array([0, 3])], jnp.zeros((2, 3)), atol=1e-12)
    assert (bent[1:3] > 0.1).all()
    chex.assert_trees_all_close(gits.deviation(end, start, start), jnp.array([3.0, 4.0]))


@given(st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=20)
def test_points_on_a_line_do_not_deviate(seed):
    start, step, at = (jax.random.normal(key, (4, 3)) for key in jax.random.split(jax.random.key(seed), 3))
    points = start + at[:, :1, None] * step
    chex.assert_trees_all_close(gits.deviation(points, start, start + step), jnp.zeros((4, 4)), atol=1e-4)


@pytest.mark.parametrize("metric", gits.METRICS)
def test_costs_are_those_of_single_jumps(metric, x64):
    """The definition, written as a loop over pairs and images, on any states and predictions."""
    states, x0 = np.random.default_rng(0).standard_normal((2, 6, 4, 5))
    sigmas, expected = FINE(5), np.zeros((6, 6))

    def bend(point, image):
        chord, rest = states[-1, image] - states[0, image], states[-1, image] - point
        along = chord / np.linalg.norm(chord)
        return np.linalg.norm(rest - rest @ along * along)

    for i, j in itertools.combinations(range(6), 2):
        for image in range(4):
            slope = (states[i, image] - x0[i, image]) / sigmas[i]
            reached, truth = states[i, image] + (sigmas[j] - sigmas[i]) * slope, states[j, image]
            if metric == "dev":
                expected[i, j] += (bend(reached, image) - bend(truth, image)) / 4
            else:
                expected[i, j] += np.linalg.norm(reached - truth, int(metric[1])) / 4
    trace = driver.Trace(jnp.asarray(states), jnp.asarray(x0[:-1]))
    ours = jax.jit(lambda trace: gits.costs(trace, sigmas, metric))(trace)
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-11)


def test_straight_trajectories_need_one_step(x64):
    """If the prediction never changes, every Euler jump lands on the trajectory."""
    goal, latents = jnp.ones((4, 3)), jax.random.normal(jax.random.key(0), (1, 4, 3))
    x = 80.0 * latents[0] + goal
    trace = driver.sample(lambda x, sigma: goal, multistep.euler(), x, FINE(10), trace=True)
    for metric in gits.METRICS:
        chex.assert_trees_all_close(gits.costs(trace, FINE(10), metric), jnp.zeros((11, 11)), atol=1e-9)
    found = gits.search(lambda x, sigma: goal, latents, FINE(10), 1, solver=multistep.euler())
    np.testing.assert_array_equal(found, [80.0, 0.002])


@pytest.mark.parametrize("num, batch, expected", [(256, 256, 1), (256, 64, 4), (8, 8, 1), (9, 8, 2)])
def test_rounds_of_a_warm_up(num, batch, expected):
    assert gits.rounds(num, batch) == expected


def test_the_search_averages_rounds_and_beats_the_schedule_that_it_thins_out(x64):
    latents, sigmas, solver = jax.random.normal(jax.random.key(0), (2, 64, 3)), FINE(30), heun.heun()
    options = dict(solver=solver, metric="l2", coeff=1.1)
    found = gits.search(mixture, latents, sigmas, 5, **options)
    assert len(found) == 6 and found[0] == 80 and found[-1] == 0.002 and set(found) <= set(sigmas)
    traces = [driver.sample(mixture, solver, 80 * z, sigmas, trace=True) for z in latents]
    mean = np.mean([gits.costs(trace, sigmas, "l2") for trace in traces], 0)
    np.testing.assert_array_equal(found, sigmas[gits.path(mean, 5, 1.1)])
    x = 80 * jax.random.normal(jax.random.key(1), (256, 3))
    exact = driver.sample(mixture, solver, x, FINE(400))
    errors = [
        gits.mean_distance(driver.sample(mixture, multistep.euler(), x, levels), exact)
        for levels in (found, FINE(5))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_an_analytical_first_step_gets_the_best_of_all_levels_to_insert(x64):
    latents, sigmas, euler = jax.random.normal(jax.random.key(0), (2, 16, 3)), FINE(12), multistep.euler()
    plain = gits.search(mixture, latents, sigmas, 3, solver=euler)
    longer = gits.search(mixture, latents, sigmas, 3, solver=euler, student=euler)
    np.testing.assert_array_equal(np.delete(longer, 1), plain)
    x = 80 * latents[-1]
    final, known = driver.sample(mixture, euler, x, sigmas), x / (np.sqrt(6401) * (np.sqrt(6401) + 80))

    def miss(second):
        levels = np.insert(plain, 1, second)
        return gits.mean_distance(driver.sample(mixture, euler, x, levels, known=known), final)

    between = sigmas[(sigmas < plain[0]) & (sigmas > plain[1])]
    assert len(between) > 2 and longer[1] == min(between, key=miss)


def test_the_first_of_equal_insertions_is_taken():
    assert gits.with_first(np.array([0, 4, 9]), lambda _: 1.0).tolist() == [0, 1, 4, 9]
    assert gits.with_first(np.array([0, 4, 9]), lambda path: abs(path[1] - 3)).tolist() == [0, 3, 4, 9]


def backwards(denoise, _, x, at, *, plan):
    """A step whose only call is at its end."""
    return denoise(x, at.sigma_next), None


def idle(denoise, _, x, at, *, plan):
    """A step without a call."""
    return x, None


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: gits.path(np.zeros((4, 4)), 4), "3 fine steps takes 1 to 3; got 4"),
        (lambda: gits.path(np.zeros((4, 4)), 0), "1 to 3; got 0"),
        (lambda: gits.path(np.zeros((4, 4)), 2, 0.0), "positive and finite; got 0.0"),
        (lambda: gits.path(np.zeros((4, 4)), 2, np.nan), "positive and finite; got nan"),
        (lambda: gits.path(np.zeros((4, 3)), 2), r"shape \(4, 3\)"),
        (lambda: gits.path(np.array([[0, 1, np.nan], [0, 0, 1], [0, 0, 0]]), 1), "nan from 0 to 2"),
        (lambda: gits.costs(driver.Trace(np.ones((3, 1)), np.ones((2, 1))), FINE(2), "l3"), "dev, l1, l2"),
        (lambda: gits.with_first(np.array([0, 1, 5]), float), "fine level between the first two of .0, 1, 5"),
        (lambda: gits.check_fine_solver(Solver(backwards), FINE(3)), "does not at step 0"),
        (lambda: gits.check_fine_solver(Solver(idle), FINE(3)), "does not at step 0"),
        (lambda: gits.check_fine_solver(heun.heun_churn(), FINE(3)), "this solver adds noise: use euler"),
        (lambda: gits.search(mixture, jnp.ones((1, 2, 3)), FINE(4)[::-1], 2, solver=heun.heun()), "decrease"),
        (lambda: gits.search(mixture, jnp.ones((1, 2, 3)), FINE(4), 5, solver=heun.heun()), "1 to 4; got 5"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_sampler_may_have_a_schedule_of_its_own():
    class Model:
        precond = precond.edm()

    levels = (80.0, 2.0, 0.4, 0.002)
    own = dict(name="levels", sigmas=levels)
    requests = {
        "found": dict(name="euler", nfe=3, schedule=own),
        "base": dict(name="euler", nfe=3),
    }
    made = sampling.samplers(requests, Model, FINE, (3,))
    ours, theirs = (made[name].generate.args[0].steps for name in ("found", "base"))
    chex.assert_trees_all_close(np.append(ours.sigma, ours.sigma_next[-1]), np.float32(levels))
    chex.assert_trees_all_close(np.append(theirs.sigma, theirs.sigma_next[-1]), np.float32(FINE(3)))
    with pytest.raises(ValueError, match="'karras'; known: polynomial"):
        sampling.samplers({"x": dict(name="euler", nfe=3, schedule=dict(name="karras"))}, Model, FINE, (3,))


TEACHER = "configs/lab_edm.py:smoke"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work directory of a smoke teacher."""
    workdir = tmp_path_factory.mktemp("runs") / "lab_edm_smoke"
    assert commands.fit(experiment.Experiment("lab_edm_smoke", experiment.load(TEACHER), workdir))
    return workdir


def command(*arguments):
    return search.main(["gits.py", *map(str, arguments)])


def test_the_command_finds_levels_that_a_config_can_ask_for(trained, capsys):
    small = ("--config", TEACHER, "--workdir", trained, "--fine", 9, "--num", 40, "--steps", "4,2,4")
    assert command(*small) == 0
    text, known = capsys.readouterr().out, json.loads((trained / "gits.json").read_text())
    assert [level["steps"] for level in known["levels"]] == [2, 4]
    for level in known["levels"]:
        assert level["nfe"] == level["steps"] == len(level["sigmas"]) - 1
        np.testing.assert_array_equal(level["sigmas"], FINE(8)[level["indices"]])
        assert f"| {level['steps']} | {level['nfe']} |" in text and level["distance"] > 0 < level["base"]
    request = dict(steps=[2, 4], solver="ipndm_4", fine_solver="ipndm_4", metric="dev", coeff=1.15, fine=9,
                   num=40, seed=0, afs=False, zero=None)  # fmt: skip
    assert known["request"] == request and known["warm_up"]["images"] == 2 * 32  # batches of the config's
    assert known["teacher"]["fingerprint"] == checkpoint.product(trained).fingerprint
    parts = assemble.assemble(experiment.load(TEACHER)).parts
    requests = {name: eval(said) for name, said in re.findall(r'^"(.*)": (dict.*)$', text, re.MULTILINE)}
    made = sampling.samplers(requests, parts.models["student"], parts.schedule, parts.shape)
    assert {name: sampler.nfe for name, sampler in made.items()} == {"ipndm_4 gits 2": 2, "ipndm_4 gits 4": 4}
    for level, sampler in zip(known["levels"], made.values(), strict=True):
        np.testing.assert_allclose(sampler.generate.args[0].steps.sigma, level["sigmas"][:-1], rtol=1e-6)
    before = (trained / "gits.json").read_bytes()
    assert command(*small) == 0 and (trained / "gits.json").read_bytes() == before


def test_the_command_searches_for_other_solvers_and_first_steps(trained, capsys):
    arguments = ("--config", TEACHER, "--workdir", trained, "--fine", 9, "--num", 32, "--steps", 2, "--seed", 3)
    assert command(*arguments, "--solver", "heun", "--metric", "l2", "--zero") == 0
    (level,) = json.loads((trained / "gits.json").read_text())["levels"]
    assert level["nfe"] == 3 and level["sigmas"][-1] == 0  # Heun's step onto zero makes one call
    assert command(*arguments, "--solver", "euler", "--afs", "--coeff", 0.9) == 0
    (level,) = json.loads((trained / "gits.json").read_text())["levels"]
    assert level["nfe"] == 2 and len(level["sigmas"]) == 4 and level["steps"] == 2
    assert "nfe=2, afs=True, schedule=dict" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "no --config given"),
        (["--config", TEACHER], "has no finished weights: train it first"),
        (["--config", "configs/sid_digits.py:smoke"], "trained by sid; use --config edm_digits:smoke"),
        (["--config", "configs/classifier_digits.py"], "trained by classifier; name the config of a teacher"),
        (["--config", TEACHER, "--solver", "rk45"], "no solver 'rk45'; known: .*ipndm_4"),
        (["--config", TEACHER, "--fine_solver", "unipc_2"], "first at the start of each step"),
        (["--config", TEACHER, "--metric", "l3"], "no metric 'l3' of a jump; known: dev, l1, l2"),
        (["--config", TEACHER, "--coeff", "-1"], "positive and finite; got -1"),
        (["--config", TEACHER, "--steps", "3,21"], "20 fine steps takes 1 to 20; got 21"),
        (["--config", TEACHER, "--steps", "3,four"], "--steps takes whole numbers such as 3,4,5; got '3,four'"),
        (["--config", TEACHER, "--steps", ""], "--steps takes whole numbers"),
        (["--config", TEACHER, "--fine", "1"], "fine"),
        (["--config", TEACHER, "--num", "0"], "num"),
    ],
)
def test_what_cannot_be_searched_is_one_line(arguments, words, capsys, tmp_path):
    assert command(*arguments, "--workdir", tmp_path / "run") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(words, lines[0]), lines
    assert not list(tmp_path.iterdir())
