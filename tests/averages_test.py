"""Averages whose width is chosen afterwards: exact widths, reconstruction, and a run that keeps snapshots."""

import shutil

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

import toy_run
from fastdiff_jax import averages
from fastdiff_jax.runtime import (
    checkpoint,
    commands,
    experiment,
    loop,
    mesh,
    posthoc,
    settings,
    writer,
)
from fastdiff_jax.runtime.assemble import assemble
from toy_run import BATCH, SEED, STEPS, Batches, toy_frozen, toy_method

WIDTHS = (0.05, 0.10)
GAMMAS = [averages.exponent(width) for width in WIDTHS]
CONFIG = {"seed": SEED, "train": {"steps": STEPS, "batch_size": BATCH, "posthoc": {"every": 3}}}


# Profiles.


@hypothesis.settings(deadline=None)
@hypothesis.given(st.floats(0.005, 0.288))
def test_widths_and_exponents_are_inverse(sigma_rel):
    np.testing.assert_allclose(averages.width(averages.exponent(sigma_rel)), sigma_rel, rtol=1e-9)


def test_a_width_is_the_deviation_of_its_profile():
    """By quadrature of (g + 1) tau^g on [0, 1]; EDM2's two exponents are published as 16.97 and 6.94."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    tau, weights = (nodes + 1) / 2, weights / 2
    for sigma_rel, published in zip(WIDTHS, (16.97, 6.94)):
        gamma = averages.exponent(sigma_rel)
        mass = weights * (gamma + 1) * tau**gamma
        mean = mass @ tau
        np.testing.assert_allclose([mass.sum(), mean], [1, (gamma + 1) / (gamma + 2)], rtol=1e-8)
        np.testing.assert_allclose(np.sqrt(mass @ (tau - mean) ** 2), sigma_rel, rtol=1e-7)
        assert abs(gamma - published) < 5e-3


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 12**-0.5, 0.5])
def test_impossible_widths_are_refused(sigma_rel):
    with pytest.raises(ValueError, match="between 0 and 0.2887, that of the plain mean; got"):
        averages.exponent(sigma_rel)


@pytest.mark.parametrize("gamma", [0.0, *GAMMAS])
def test_the_recursion_has_its_closed_form(x64, gamma):
    """After n steps iterate i weighs (i^(g+1) - (i-1)^(g+1)) / n^(g+1): for g = 0 the arithmetic mean."""
    values = jax.random.normal(jax.random.key(0), (20, 3))
    average = {"w": jnp.full(3, 1e9)}  # initial weights vanish
    for number, value in enumerate(values, 1):
        average = averages.moved(average, {"w": value}, averages.share(jnp.float64(number), 1.0, gamma))
    edges = (np.arange(21) / 20) ** (gamma + 1)
    chex.assert_trees_all_close(average["w"], np.diff(edges) @ values, rtol=1e-6)


def test_late_in_a_long_run_single_precision_still_knows_the_share():
    """beta itself would be off by a percent: 1 - 18 / 1e7 has two digits of its distance to one."""
    steps = 1e7
    found = averages.share(jnp.float32(steps), 1.0, GAMMAS[0])
    np.testing.assert_allclose(found, (GAMMAS[0] + 1) / steps, rtol=1e-5)


def test_overlaps_are_the_profiles_inner_products():
    nodes, weights = np.polynomial.legendre.leggauss(200)
    profile = lambda tau, t, gamma: np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0)
    for t_a, t_b in ((3.0, 5.0), (5.0, 3.0), (4.0, 4.0)):
        end = min(t_a, t_b)
        tau, mass = end * (nodes + 1) / 2, end * weights / 2
        expected = mass @ (profile(tau, t_a, GAMMAS[0]) * profile(tau, t_b, GAMMAS[1]))
        np.testing.assert_allclose(averages.overlap(t_a, GAMMAS[0], t_b, GAMMAS[1]), expected, rtol=1e-10)


def test_a_target_that_was_tracked_is_found_as_it_is():
    times, gammas = np.repeat([1.0, 2.0, 3.0], 2), np.tile(GAMMAS, 3)
    factors = averages.coefficients(times, gammas, 3.0, GAMMAS[1])
    np.testing.assert_allclose(factors, [0, 0, 0, 0, 0, 1], atol=1e-10)
    between = averages.coefficients(times, gammas, 3.0, averages.exponent(0.07))
    np.testing.assert_allclose(between.sum(), 1)
    assert np.abs(between).max() < 3


@pytest.mark.parametrize("times, gammas, words", [
    ((1.0, 1.0), (3.0, 3.0), "two snapshots have the same time and width"),
    ((1.0, 2.0), (3.0, 3.0), "made of snapshots up to there, one of them there; got 1, 2"),
    ((3.0, 4.0), (3.0, 3.0), "got 3, 4"),
])  # fmt: skip
def test_snapshots_that_make_no_average_are_refused(times, gammas, words):
    with pytest.raises(ValueError, match=words):
        averages.coefficients(times, gammas, 3.0, 5.0)


# Runs.


class Dies(Exception):
    """In a kill's place."""


def run(workdir, die_in=None, every=3):
    """The toy with snapshots every three of its steps."""
    method = averages.tracked(toy_method(), GAMMAS)

    def hook(number):
        if number == die_in:
            raise Dies

    options = posthoc.Options(every)
    with checkpoint.Store(workdir, CONFIG) as store:
        log = writer.Writer(workdir)
        try:
            outcome = loop.train(
                method, toy_frozen(), Batches(hook=hook), seed=SEED, steps=STEPS, batch_size=BATCH,
                mesh=mesh.make({"data": -1, "fsdp": 1}), store=store, writer=log, log_every=2, save_every=4,
                patience=2, progress=False, snapshot_every=every, snapshot=posthoc.of(options),
            )  # fmt: skip
        finally:
            log.close()
        store.finish(outcome.step, method.weights(outcome.state))
    return outcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averages")
    return workdir, run(workdir)


def experiment_of(workdir, every=3):
    kept = dict(every=every, sigma_rel=WIDTHS)
    return experiment.Experiment("toy", ConfigDict(dict(train=dict(batch_size=BATCH, posthoc=kept))), workdir)


def snapshot(workdir, step, like):
    return checkpoint.load_snapshot(workdir, step, [like] * len(WIDTHS))


def test_tracking_changes_nothing_else(whole, tmp_path):
    """The training state and the product are those of the method alone."""
    alone = toy_run.run(tmp_path)
    chex.assert_trees_all_close(whole[1].state.state, alone.state, rtol=1e-6)


def test_snapshots_are_kept_at_their_steps_and_at_the_last(whole, tmp_path):
    assert checkpoint.snapshots(whole[0]) == [3, 6, 9, 12]
    run(tmp_path, every=5)
    assert checkpoint.snapshots(tmp_path) == [5, 10, 12]


def test_reconstructing_a_tracked_width_gives_that_average(whole):
    workdir, outcome = whole
    like = outcome.state.state.ema
    for width, tracked in zip(WIDTHS, outcome.state.averages):
        found = posthoc.reconstructed(experiment_of(workdir), like, width)
        chex.assert_trees_all_close(found, tracked, rtol=1e-5, atol=1e-7)
    between = posthoc.reconstructed(experiment_of(workdir), like, 0.07)
    assert not np.allclose(*(jax.tree.leaves(tree)[0] for tree in (between, found)))
    chex.assert_trees_all_equal_shapes_and_dtypes(between, like)


def test_a_run_that_stopped_goes_on_to_the_same_snapshots(whole, tmp_path):
    """It stops after the snapshot of step 6, and goes on from the checkpoint of step 4."""
    with pytest.raises(Dies):
        run(tmp_path, die_in=7)
    assert checkpoint.snapshots(tmp_path) == [3, 6]
    outcome = run(tmp_path)
    chex.assert_trees_all_equal(outcome.state, whole[1].state)
    like = outcome.state.state.ema
    for step in (3, 6, 9, 12):
        chex.assert_trees_all_equal(snapshot(tmp_path, step, like), snapshot(whole[0], step, like))


def test_half_precision_files_reconstruct_in_single_precision(whole):
    kept = posthoc.Options(3, WIDTHS, "float16")
    stored = posthoc.of(kept)(whole[1].state)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float16")}
    combined = averages.combined([0.5, 0.5], stored)
    assert {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(combined)} == {np.dtype("float32")}


def test_missing_and_damaged_snapshots_are_refused(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    like, run_ = whole[1].state.state.ema, experiment_of(workdir)
    victim = max((workdir / "snapshots/9").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ValueError, match="snapshots/9 is damaged: the contents of .* have changed"):
        posthoc.reconstructed(run_, like, 0.07)
    (workdir / "snapshots.json").unlink()
    with pytest.raises(ValueError, match="has no snapshot of its last step 12"):
        posthoc.reconstructed(run_, like, 0.07)


# Settings.


@pytest.mark.parametrize("section, words", [
    (dict(every=0), "posthoc.every is a number of steps, 1 or more; got 0"),
    (dict(every=2, sigma_rel=(0.05, 0.05)), "sigma_rel lists different widths such as"),
    (dict(every=2, sigma_rel=(0.5,)), "between 0 and 0.2887"),
    (dict(every=2, dtype="bfloat16"), "dtype is float32 or float16; got 'bfloat16'"),
    (dict(every=2, often=True), "no setting often; known: every, sigma_rel, dtype"),
    (dict(sigma_rel=WIDTHS), "needs the setting every"),
])  # fmt: skip
def test_bad_settings_are_refused(section, words):
    config = experiment.load("edm_digits:smoke")
    config.train.posthoc = section
    with pytest.raises(ValueError, match=words):
        assemble(config, outline=True)


def test_widths_of_a_run_without_snapshots_are_refused_before_it_is_trained():
    config = experiment.load("edm_digits:smoke")
    config.evaluation.sigma_rel = (0.08,)
    with pytest.raises(ValueError, match="width 0.08, but this training keeps no snapshots; train with"):
        posthoc.check(config)
    config.evaluation.sigma_rel = ("wide",)
    with pytest.raises(ValueError, match="evaluation.sigma_rel must be a list of widths such as 0.08"):
        settings.check(config)


@pytest.mark.parametrize("reference", ["edm_digits:smoke,posthoc", "dmd_digits:smoke,posthoc"])
def test_teachers_and_students_keep_averages_of_what_they_train(reference):
    """The state has two more trees of the product's form, and the product stays the method's own."""
    job = assemble(experiment.load(reference), outline=True)
    plain = assemble(experiment.load(reference.replace(",posthoc", "")), outline=True)
    state, product = commands.state_shapes(job), commands.weight_shapes(plain)
    assert len(state.averages) == 2
    for tree in (*state.averages, job.method.weights(state)):
        chex.assert_trees_all_equal_shapes_and_dtypes(tree, product)
