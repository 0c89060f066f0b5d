"""Runs that train a delta: what they save, the file of it, and other copies of the teacher."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import chex
import jax
import numpy as np
import pytest
import safetensors
from orbax.checkpoint import v1 as ocp

from fastdiff_jax import rng, trees
from fastdiff_jax.metrics import features
from fastdiff_jax.runtime import (
    assemble,
    checkpoint,
    commands,
    convert,
    converted,
    deltas,
    experiment,
    settings,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.experiment import Experiment

TEACHER, STUDENT = "discrete_digits:smoke", "flash_digits:smoke"


class Runs(NamedTuple):
    """A teacher with finished weights, and a student of it, as after training."""

    student: Experiment
    teacher: Path
    job: assemble.Job
    frozen: dict
    state: tuple


def noise(shapes, seed):
    leaves, form = jax.tree.flatten(shapes)
    draw = np.random.default_rng(seed).normal
    return form.unflatten([draw(scale=0.1, size=leaf.shape).astype(leaf.dtype) for leaf in leaves])


def teacher_at(folder, seed=0, **network):
    """A folder of finished weights of the teacher's config, which nothing has trained."""
    config = experiment.load(TEACHER)
    config.models.student.network.update(network)
    shapes = commands.weight_shapes(assemble.assemble(config, outline=True))
    converted.place(folder, config, noise(shapes, seed), {})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    parent = tmp_path_factory.mktemp("runs")
    teacher = teacher_at(parent / "discrete_digits_smoke")
    student = Experiment("flash_digits_smoke", experiment.load(STUDENT), parent / "flash_digits_smoke")
    job = assemble.assemble(student.config)
    frozen, _ = commands.starting_weights(job, student, meshes.make(student.config.mesh))
    state = jax.jit(job.method.init)(rng.root(0, "init"), frozen)
    state = state._replace(params=jax.tree.map(jax.numpy.asarray, noise(state.params, 1)))
    with checkpoint.Store(student.workdir, student.config.to_dict()) as store:
        deltas.keep_base(student, job, begun=False)
        store.save(3, state, {})
        store.finish(6, job.method.weights(state))
    return Runs(student, teacher, job, frozen, state)


def run(**flags):
    return convert.main(["convert.py", *(f"--{name}={value}" for name, value in flags.items())])


@pytest.fixture(scope="module")
def file(runs):
    path = runs.student.workdir.parent / "delta.safetensors"
    assert run(kind="lora", workdir=runs.student.workdir, out=path) == 0
    return path


def test_checkpoints_hold_delta_head_and_optimizers_alone(runs):
    saved = ocp.checkpointables_metadata(runs.student.workdir / "checkpoints" / "3").metadata["state"]
    found = dict(trees.named(saved))
    kinds = {path.split("/")[0] for path in found}
    assert kinds == {"step", "params", "opt", "head", "head_opt"}
    ends = {path.rpartition("/")[2] for path in found if path.startswith("params/")}
    assert ends == {"down", "up"}
    delta, head = trees.count(runs.state.params), trees.count(runs.state.head)
    counts = 5  # step, and of both optimizers Adam's count and the schedule's
    assert trees.count(saved) == 3 * delta + 3 * head + counts
    assert trees.count(runs.job.method.weights(runs.state)) == delta


def test_the_file_names_leaves_by_path_and_says_what_they_belong_to(runs, file):
    with safetensors.safe_open(file, "numpy") as opened:
        names, about = set(opened.keys()), json.loads(opened.metadata()[features.KEY])
    assert names == {path for path, _ in trees.named(runs.state.params)}
    assert "dec/4x4_in0/qkv/kernel/down" in names
    rule = about["lora"]["rules"]["attention"]
    assert (rule["rank"], rule["alpha"], rule["init"]) == (5, 5.0, "gaussian")
    assert about["base"]["fingerprint"] == checkpoint.fingerprint(runs.frozen["teacher"])
    assert (about["step"], about["base"]["name"]) == (6, "discrete_digits_smoke")
    assert file.stat().st_size < 4 * trees.count(runs.state.params) + 20_000  # and nothing of the teacher


def test_a_delta_comes_back_on_another_copy_of_its_teacher(runs, file, tmp_path, capsys):
    copy, out = tmp_path / "copy", tmp_path / "attached"
    shutil.copytree(runs.teacher, copy)
    assert run(kind="attach", file=file, teacher=copy, out=out) == 0
    assert "of the teacher's" in capsys.readouterr().out
    attached = Experiment("attached", experiment.load(str(out)), out)
    settings.check(attached.config)
    job, mesh = assemble.assemble(attached.config, outline=True), meshes.make(attached.config.mesh)
    delta = commands.product(job, attached, mesh)
    chex.assert_trees_all_equal(delta, runs.state.params)
    below = commands.starting_weights(job, attached, mesh)[0]["teacher"]
    theirs = runs.job.parts.adapter.merge(runs.frozen["teacher"], runs.state.params)
    chex.assert_trees_all_equal(job.parts.adapter.merge(below, delta), theirs)
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "attached"}  # nothing left over
    commands.sample(attached, 4, tmp_path / "samples.npz", 0, None, "student 1")
    with np.load(tmp_path / "samples.npz") as made:
        chex.assert_shape(made["images"], (4, 8, 8, 1))
    again = tmp_path / "again.safetensors"
    assert run(kind="lora", workdir=out, out=again) == 0
    chex.assert_trees_all_equal(deltas.read(again)[0], deltas.read(file)[0])


def test_other_weights_are_refused(runs, file, tmp_path, capsys):
    other = teacher_at(tmp_path / "other", seed=2)
    assert run(kind="attach", file=file, teacher=other, out=tmp_path / "out") == 2
    own, theirs = (checkpoint.product(folder).fingerprint[:12] for folder in (runs.teacher, other))
    said = capsys.readouterr().err
    assert f"was trained on weights {own}" in said and f"holds {theirs}" in said and said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


def test_other_networks_are_refused(file, tmp_path, capsys):
    other = teacher_at(tmp_path / "other", model_channels=32)
    assert run(kind="attach", file=file, teacher=other, out=tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "the delta does not fit: dec/4x4_block0/affine/kernel/down is (64, 5) there" in said
    assert "make it (128, 5)" in said and said.count("\n") == 1


def test_other_targets_are_refused(runs, file, tmp_path, capsys):
    delta, about = deltas.read(file)
    del delta["enc"]
    edited = tmp_path / "edited.safetensors"
    edited.write_bytes(features.serialise(delta, about))
    assert run(kind="attach", file=edited, teacher=runs.teacher, out=tmp_path / "out") == 2
    assert "enc/4x4_block0/affine/kernel/down is absent there" in capsys.readouterr().err


def test_a_changed_teacher_is_noticed(runs, tmp_path):
    shutil.copytree(runs.student.workdir, tmp_path / "flash_digits_smoke")
    teacher_at(tmp_path / "discrete_digits_smoke", seed=3)
    student = runs.student._replace(workdir=tmp_path / "flash_digits_smoke")
    for use in (partial(deltas.keep_base, begun=True), deltas.check_base):
        with pytest.raises(ValueError, match="was trained on weights .* holds .*; restore those"):
            use(student, runs.job)
    with pytest.raises(ValueError, match="was trained on weights"):
        commands.product(runs.job, student, meshes.make(student.config.mesh))


def test_a_delta_whose_base_is_not_known_any_more_is_refused(runs, tmp_path):
    """A new base.json would vouch for weights that the checkpoints may never have seen."""
    shutil.copytree(runs.student.workdir, tmp_path / "flash_digits_smoke")
    teacher_at(tmp_path / "discrete_digits_smoke", seed=3)
    student = runs.student._replace(workdir=tmp_path / "flash_digits_smoke")
    (student.workdir / "base.json").unlink()
    with pytest.raises(ValueError, match="has checkpoints of a delta but no base.json, .* restore that file"):
        deltas.keep_base(student, runs.job, begun=True)
    assert not (student.workdir / "base.json").exists()


def test_a_separate_fake_score_is_counted_too(runs):
    state = runs.state._replace(fake=runs.state.params)
    delta, head = trees.count(state.params), trees.parameters(state.head)
    said = deltas.described(runs.frozen["teacher"], state)
    assert f"discriminator's {head:,} and the separate fake score's {delta:,} are not among them" in said


@pytest.mark.parametrize(
    "content, message", [(None, "there is no file"), (b"x" * 40, "holds no delta"), ("net", "holds no delta")]
)
def test_files_without_a_delta_are_refused(runs, tmp_path, capsys, content, message):
    path = tmp_path / "delta.safetensors"
    if content is not None:
        net = features.serialise({"kernel": np.ones(2)}, {"shape": [8, 8, 1]})
        path.write_bytes(net if content == "net" else content)
    assert run(kind="attach", file=path, teacher=runs.teacher, out=tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_runs_without_a_delta_are_refused(runs, file, tmp_path, capsys):
    assert run(kind="lora", workdir=runs.teacher, out=tmp_path / "out.safetensors") == 2
    assert "holds a whole network, no delta; use --kind export" in capsys.readouterr().err
    for flags, message in (
        (dict(kind="lora", workdir=tmp_path / "none", out=tmp_path / "out.safetensors"), "is no folder"),
        (dict(kind="lora", workdir=runs.student.workdir, out=file), "is there already"),
        (dict(kind="attach", file=file, teacher=tmp_path / "none", out=tmp_path / "out"), "is no folder"),
        (dict(kind="attach", file=file, teacher=runs.teacher, out=runs.teacher), "is there already"),
        (dict(kind="attach", file=file, out=tmp_path / "out"), "no --teacher given"),
    ):
        assert run(**flags) == 2
        assert message in capsys.readouterr().err


def test_edm_exports_are_merged(runs, tmp_path):
    """The names of the EDM code are of whole networks."""
    whole = {}
    for name, workdir in (("teacher", runs.teacher), ("student", runs.student.workdir)):
        assert run(kind="export", workdir=workdir, out=tmp_path / f"{name}.safetensors") == 0
        with safetensors.safe_open(tmp_path / f"{name}.safetensors", "numpy") as opened:
            whole[name] = {key: opened.get_tensor(key) for key in opened.keys()}
    assert whole["teacher"].keys() == whole["student"].keys()
    merged = runs.job.parts.adapter.merge(runs.frozen["teacher"], runs.state.params)
    (key,) = (key for key in whole["student"] if key.endswith("map_layer0.weight"))
    np.testing.assert_array_equal(whole["student"][key].T, merged["map_layer0"]["kernel"])
    assert not np.array_equal(whole["student"][key], whole["teacher"][key])


def test_dry_run_counts_the_delta_and_apart_the_head(runs, capsys, monkeypatch):
    step = SimpleNamespace(lower=lambda *_: SimpleNamespace(cost_analysis=lambda: {"flops": 0.0}))
    monkeypatch.setattr(commands.compile, "train_step", lambda *_: step)
    commands.dry_run(runs.student)
    delta, head = trees.count(runs.state.params), trees.count(runs.state.head)
    whole = trees.count(runs.frozen["teacher"])
    said = capsys.readouterr().out
    assert f"trained: {delta:,} parameters, {delta / whole:.1%} of the teacher's {whole:,}; the discr" in said
    assert f"discriminator's {head:,} are not among them" in said


def test_reports_say_how_much_is_trained(runs, monkeypatch):
    kept = []
    monkeypatch.setattr(commands.evaluate, "work", lambda run, job, *_: kept.extend(job.method.remarks))
    commands.measure(runs.student)
    assert any(remark.startswith(f"trained: {trees.count(runs.state.params):,} parameters") for remark in kept)


def test_the_full_size_is_below_a_tenth_of_its_teacher():
    job = assemble.assemble(experiment.load("flash_digits"), outline=True)
    teacher = commands.basis_shapes(job)[0]["teacher"]
    assert 1e6 < trees.parameters(teacher) < 1.25e6
    assert trees.count(commands.weight_shapes(job)) < 0.1 * trees.parameters(teacher)


def changed(reference, **models):
    config = experiment.load(reference)
    for role, request in models.items():
        config.models[role].lora = request
    return config


RULES = dict(rules=dict(attention=dict(rank=2)))


@pytest.mark.parametrize(
    "config, message",
    [
        (changed(STUDENT, teacher=RULES), "lora is for models.student; models.teacher has it"),
        (changed("sfd_digits:smoke", student=RULES), "method sfd trains whole networks, so it cannot take"),
        (changed(TEACHER, student=RULES), "method teacher trains whole networks"),
        (changed(STUDENT, student=dict(rules=dict(attention=dict(rank=0)))), "rank is a positive whole number"),
    ],
)
def test_impossible_requests_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        assemble.assemble(config, outline=True)


def test_a_delta_is_no_teacher():
    config = experiment.load("sfd_digits:smoke")
    config.teacher = STUDENT
    with pytest.raises(ValueError, match="trains a change of 'discrete_digits:smoke', no network of its own"):
        assemble.assemble(config, outline=True)


def test_rules_that_nothing_meets_are_refused_before_the_teacher_is_trained(tmp_path):
    config = changed(STUDENT, student=dict(rules=dict(attention=dict(rank=2, where="to_q"))))
    student = Experiment("flash", config, tmp_path / "flash")
    with pytest.raises(ValueError, match=r"lora rule attention .* 'to_q', and the network has none; .*qkv"):
        commands.check(student)
    assert not list(tmp_path.iterdir())
