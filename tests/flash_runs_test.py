"""Flash Diffusion in runs: what is refused before anything is written, devices, precision, sizes of deltas."""

import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devices_test import results_of, start
from fastdiff_jax import rng, trees
from fastdiff_jax.runtime import assemble, commands, evaluate, experiment
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.experiment import Experiment
from methods_contract_test import weights_like

STUDENTS = [stem for stem in experiment.known() if stem.startswith("flash_")]

# Two steps of the last stage on four devices and on one of them, from the same weights.
PROGRAM = """
import json
from fastdiff_jax.runtime import backend
backend.setup()
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)  # but for what is trained, whose sums are float32
from fastdiff_jax import rng
from fastdiff_jax.runtime import assemble, commands, compile, experiment
from fastdiff_jax.runtime import mesh as meshes

config = experiment.load("lab_flash:guided,smoke")
config.models.student.lora = dict(rules=dict(all=dict(rank=2, where="^W")))
job = assemble.assemble(config)
leaf = lambda shape: 0.3 * jax.random.normal(jax.random.key(0), shape.shape, jnp.float64)
frozen = jax.tree.map(leaf, commands.basis_shapes(job)[0])
batch = {"image": np.random.default_rng(0).normal(size=(8, *job.parts.shape)),
         "label": np.arange(8, dtype=np.int32)}
variant = job.method.variant(config.train.steps - 1, 0)

def trained(devices):
    mesh = jax.sharding.Mesh(np.array(devices)[:, None], ("data", "fsdp"))
    state = jax.eval_shape(job.method.init, rng.root(0, "init"), frozen)
    layout, frozen_layout = (meshes.shardings(tree, meshes.DEFAULT, mesh) for tree in (state, frozen))
    state = compile.initial_state(job.method, layout, frozen_layout, mesh)(rng.root(0, "init"), frozen)
    step = compile.train_step(job.method, layout, frozen_layout, mesh)
    for number in range(2):
        state, metrics = step(state, frozen, meshes.place(batch, mesh), rng.root(number, "train"), variant)
    trained = jax.tree.leaves((state.params, state.head))
    return {"metrics": {name: float(value) for name, value in metrics.items()},
            "weights": [np.asarray(leaf).ravel().tolist() for leaf in trained],
            "rows": meshes.place(batch, mesh)["image"].sharding.shard_shape(batch["image"].shape)[0]}

print(json.dumps({"four": trained(jax.devices()), "one": trained(jax.devices()[:1])}))
"""


def test_four_devices_train_what_one_trains():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    found = results_of(start(PROGRAM, XLA_FLAGS=flags))
    four, one = found["four"], found["one"]
    assert (four["rows"], one["rows"]) == (2, 8)
    names = {"loss_student", "loss_distill", "loss_matching", "loss_adversarial", "loss_discriminator"}
    assert set(one["metrics"]) == names
    for name in names:
        np.testing.assert_allclose(four["metrics"][name], one["metrics"][name], rtol=1e-6)
    for wide, narrow in zip(four["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(wide, narrow, rtol=1e-5, atol=1e-6)  # a step is of 5e-4


@pytest.mark.slow
def test_a_step_in_bfloat16_is_finite_and_its_state_is_float32():
    config = experiment.load("flash_digits:smoke")
    for role in ("teacher", "student"):
        config.models[role].network = dict(dtype="bfloat16")
    job = assemble.assemble(config, outline=True)
    frozen = weights_like(commands.basis_shapes(job)[0])
    state = jax.jit(job.method.init)(rng.root(0, "init"), frozen)
    batch = {"image": 0.5 * jnp.ones((2, *job.parts.shape)), "label": jnp.arange(2, dtype=jnp.int32)}
    turn = job.method.variant(config.train.steps - 1, 0)

    def step(state, frozen, key):
        return job.method.update(state, frozen, batch, job.method.draw(key, batch, turn), turn)

    lowered = jax.jit(step).lower(state, frozen, rng.root(0, "train"))
    assert "bf16" in lowered.as_text()
    after, metrics = lowered.compile()(state, frozen, rng.root(0, "train"))
    chex.assert_tree_all_finite((after, metrics))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((after.params, after.head))} == {"float32"}


@pytest.mark.slow  # networks of full size
@pytest.mark.parametrize("stem", STUDENTS)
def test_a_delta_is_below_a_tenth_of_its_teacher(stem):
    job = assemble.assemble(experiment.load(stem), outline=True)
    whole = trees.parameters(commands.basis_shapes(job)[0]["teacher"])
    assert 0 < trees.count(commands.weight_shapes(job)) < 0.1 * whole


def changed(reference, **values):
    """A config with values at dotted places, __ for a dot."""
    config = experiment.load(reference)
    for place, value in values.items():
        *sections, key = place.split("__")
        section = config
        for name in sections:
            section = section[name]
        section[key] = value
    return config


def without_lora():
    config = changed("flash_inpainting_digits:smoke", method__adversarial__tap="nothing")
    del config.models.student.lora
    return config




@pytest.mark.parametrize("config, words", [
    (changed("inpainting_digits:smoke", models__student__network__concat=0), "concat"),
    (without_lora(), "no tap 'nothing'; known: "),
    (changed("flash_digits:smoke", method__stages__steps=(6, 4)), "stage 1 begins at step 6, .* ends at 6"),
    (changed("lab_flash:smoke", method__stages__steps=(2, 2, 3, 1)),
     "stage 3 begins at step 7, training ends at 6; shorten stages.steps, or lengthen train.steps"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_anything_is_written(config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        commands.check(Experiment("one", config, tmp_path / "one"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def untold(monkeypatch):
    """The teacher of lab_flash:smoke was always told its labels."""
    load = experiment.load

    def loaded(reference):
        config = load(reference)
        if reference == "lab_edm:cond,smoke":
            config.method.label_dropout = 0.0
        return config

    monkeypatch.setattr(experiment, "load", loaded)


def test_guidance_of_a_teacher_that_was_always_told_is_refused(untold, tmp_path):
    run = Experiment("one", experiment.load("lab_flash:guided,smoke"), tmp_path / "one")
    words = r"guidance \(1.0, 2.0\) hides .* trained with label_dropout=0 .* or set guidance=\(1.0, 1.0\)"
    with pytest.raises(ValueError, match=words):
        commands.check(run)
    assert not list(tmp_path.iterdir())
    run.config.method.guidance = (1.0, 1.0)
    commands.check(run)
    guided = dict(name="euler", nfe=4, guidance=dict(scale=1.5))
    run.config.evaluation.teacher_samplers = {"euler, guided 4": guided}
    job = assemble.assemble(run.config, outline=True)
    with pytest.raises(ValueError, match="teacher_samplers: 'euler, guided 4' hides .* drop the guidance"):
        evaluate.check(job, meshes.make(run.config.mesh))


def test_a_delta_to_start_from_is_no_teacher(tmp_path):
    """What `init_from` names has been trained with its own teacher, whose guidance is settled there."""
    config = changed("lab_flash:guided,smoke", init_from="lab_flash:guided,smoke")
    commands.check(Experiment("one", config, tmp_path / "one"))
    assert not list(tmp_path.iterdir())


def test_a_report_has_samplers_in_the_order_of_their_numbers():
    names = [f"dpmpp_2m, guided 125% {n}" for n in (2, 32, 4, 64, 8)] + ["dpmpp_2m 32", "dpmpp_2m 8"]
    found = list(evaluate.ordered(dict.fromkeys(names)))
    assert found == ["dpmpp_2m 8", "dpmpp_2m 32", *(f"dpmpp_2m, guided 125% {n}" for n in (2, 4, 8, 32, 64))]
