"""Mesh, compiled steps, the loop, files, metrics and products, in one process on one device."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from fastdiff_jax import rng
from fastdiff_jax.runtime import backend, checkpoint, compile, files, mesh, sessions, writer
from fastdiff_jax.types import Method
from toy_run import BATCH, SEED, SHAPE, STEPS, Batches, State, run, toy_frozen, toy_method

ONE = {"data": -1, "fsdp": 1}


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# Back end.


@pytest.mark.parametrize(
    ("environment", "version", "cpu", "expected"),
    [
        ({}, (0, 10), True, "--xla_cpu_experimental_ynn_fusion_type="),
        ({"XLA_FLAGS": "--a=1"}, (0, 10), True, "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
        ({"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=all"}, (0, 10), True, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, (0, 10), True, None),
        ({"JAX_NUM_CPU_DEVICES": "8"}, (0, 10), True, None),
        ({"JAX_NUM_CPU_DEVICES": "1"}, (0, 10), True, "--xla_cpu_experimental_ynn_fusion_type="),
        ({}, (0, 11), True, None),
        ({}, (0, 10), False, None),
    ],
)
def test_the_flag_is_set_where_it_is_known_and_never_over_the_users(environment, version, cpu, expected):
    assert backend.xla_flags(environment, version, cpu) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4"}, None),  # an allocation, but not a step of it
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a,b"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            {"num_processes": 2, "process_id": 0},
        ),
    ],
)
def test_processes_are_connected_only_if_a_launcher_started_several(environment, expected):
    assert backend.launched(environment) == expected


# Mesh. Real meshes of several devices are in devices_test.py.


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
    assert mesh.make(ONE).shape == {"data": 1, "fsdp": 1}
    for data, fsdp in ((3, 1), (-1, 2), (-1, -1), (0, 1)):
        with pytest.raises(ValueError, match=f"mesh .*data={data} x fsdp={fsdp}"):
            mesh.make({"data": data, "fsdp": fsdp})


def test_a_batch_that_does_not_divide_is_refused_with_the_way_out():
    eight = SimpleNamespace(size=8)
    mesh.check_divides(96, eight)
    with pytest.raises(ValueError) as error:
        mesh.check_divides(100, eight)
    assert str(error.value) == "batch_size 100 does not divide over 8 devices; use a multiple of 8."


@given(st.lists(st.integers(0, 12), max_size=4), st.sampled_from([1, 2, 4]))
def test_the_largest_divisible_dimension_of_a_large_leaf_is_split(shape, size):
    devices = SimpleNamespace(shape={"data": 3, "fsdp": size})
    chosen = mesh.largest(above=15)(tuple(shape), 4 * int(np.prod(shape)), devices)
    divisible = [length for length in shape if length and length % size == 0]
    if size == 1 or 4 * np.prod(shape) <= 15 or not divisible:
        assert chosen == P()
    else:
        assert shape[list(chosen).index("fsdp")] == max(divisible)


def test_the_first_matching_rule_decides_and_must_fit():
    one = mesh.make(ONE)
    shapes = {"params": {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}}
    layout = mesh.shardings(shapes, ((r"params/a$", P(None, "data")), (r"/a$", P("data"))), one)
    assert layout["params"]["a"].spec == P(None, "data") and layout["params"]["b"].spec == P()
    with pytest.raises(ValueError, match=r"params/b of shape \(\) does not divide"):
        mesh.shardings(shapes, ((r"b$", P("data")),), one)


# The loop.


def by_hand(method: Method, steps: int = STEPS):
    """The same training without the runtime: init, draw and update, called as the types say."""
    batches, frozen = Batches(), toy_frozen()
    state = jax.jit(method.init)(rng.root(SEED, "init"), frozen)
    step = jax.jit(
        lambda state, batch, key, v: method.update(state, frozen, batch, method.draw(key, batch, v), v),
        static_argnums=3,
    )
    for number in range(steps):
        state = method.advance(state, number)
        key = jax.random.fold_in(rng.root(SEED, "train"), number)
        state, metrics = step(state, next(batches), key, method.variant(number, SEED))
    return state, metrics


def test_trains_what_a_loop_by_hand_trains(tmp_path):
    outcome, (state, metrics) = run(tmp_path), by_hand(toy_method())
    assert (outcome.step, outcome.finished) == (STEPS, True)
    chex.assert_trees_all_close(outcome.state, state, rtol=1e-5, atol=1e-6)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["images"] for row in rows] == [BATCH * row["step"] for row in rows]
    np.testing.assert_allclose(rows[-1]["loss"], metrics["loss"], rtol=1e-5)


def test_states_that_share_buffers_survive_donation(tmp_path):
    """The toy's first state shares params with ema and `start` with frozen; so do `advance` and one variant."""
    frozen = toy_frozen()
    method, one = toy_method(), mesh.make(ONE)
    layout, frozen_layout = (
        mesh.shardings(tree, mesh.DEFAULT, one)
        for tree in (jax.eval_shape(method.init, rng.root(0, "init"), frozen), frozen)
    )
    state = compile.initial_state(method, layout, frozen_layout, one)(rng.root(0, "init"), frozen)
    step, settle = compile.train_step(method, layout, frozen_layout, one), compile.settled(layout)
    for number, variant in enumerate(("single", "double", "double", "single")):
        before, batch = state, mesh.place(next(Batches()), one)
        state, _ = step(state, frozen, batch, rng.root(number, "train"), variant)
        assert jax.tree.leaves(before)[1].is_deleted()
        state = settle(state._replace(ema=state.params, start=frozen["anchor"]))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state, frozen))]
    assert len(set(pointers)) == len(pointers)
    np.testing.assert_array_equal(frozen["anchor"], toy_frozen()["anchor"])


def test_every_variant_is_compiled_once_and_weak_types_do_not_matter():
    traced = []

    def update(state, frozen, batch, draws, variant):
        traced.append(variant)
        return {"scale": 2.0, "sum": state["sum"] + batch["image"].sum()}, {}

    def init(key, frozen):
        return {"scale": 1.0 * jnp.ones(()), "sum": jnp.asarray(0.0)}

    method = Method(init, lambda key, batch, variant: {}, update, lambda state: state, {})
    one, key = mesh.make(ONE), rng.root(0, "train")
    layout = mesh.shardings(jax.eval_shape(init, key, {}), mesh.DEFAULT, one)
    state = compile.initial_state(method, layout, {}, one)(key, {})
    step = compile.train_step(method, layout, {}, one)
    batch = {"image": np.ones((2, 3), np.float32)}
    for number, variant in enumerate("abbaab"):
        state, _ = step(state, {}, mesh.place(batch, one), jax.random.fold_in(key, number), variant)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert traced == ["a", "b"] and state["sum"] == 36


def test_metrics_are_fetched_only_where_they_are_logged(tmp_path, monkeypatch):
    fetched, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(tree) or get(tree))
    run(tmp_path, log_every=5, save_every=100)
    assert len(fetched) == 3  # steps 5, 10 and the last


def test_every_save_is_told(tmp_path):
    told = []
    run(tmp_path, saved=told.append)
    assert told == [4, 8, STEPS]


def test_time_up_to_the_last_save_counts_however_a_session_ends(tmp_path):
    """A session is noted anew at every save, so a kill leaves the last note; the next begins elsewhere."""
    assert sessions.seconds(tmp_path) == 0
    for first, last, spent in ((0, 4, 1.0), (0, 8, 2.5), (8, 12, 0.5), (12, 12, 9.0)):
        sessions.record(tmp_path, first, last, spent)
    assert sessions.seconds(tmp_path) == 3.0
    noted = files.read_json(tmp_path / "sessions.json")
    assert [(one["from"], one["to"]) for one in noted] == [(0, 8), (8, 12)]


def test_a_batch_that_does_not_divide_leaves_no_trace_of_training(tmp_path):
    with pytest.raises(ValueError, match="batch_size 0 does not divide"):
        run(tmp_path, batch_size=0, batches=Batches())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_sigterm_saves_at_the_next_step_and_the_rest_follows(tmp_path):
    whole = run(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)

    def stop(number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = run(tmp_path / "parts", batches=Batches(hook=stop))
    assert (outcome.step, outcome.finished) == (7, False)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "parts" / "product.json").exists()
    outcome = run(tmp_path / "parts")
    assert outcome.finished
    chex.assert_trees_all_equal(outcome.state, whole.state)
    assert (tmp_path / "parts/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


@pytest.mark.parametrize("late", [False, True], ids=["loss", "weights"])
def test_a_loss_that_stays_nan_stops_after_patience_and_keeps_the_last_good_state(tmp_path, late):
    method = toy_method(nan_from=4, late_nan=late)  # NaN: the loss of step 5; late: the weights of 4
    with pytest.raises(ValueError) as error:
        run(tmp_path, method=method, log_every=1, save_every=1 if late else 2, patience=3)
    last = 3 if late else 4
    assert str(error.value) == (
        "training stopped at step 7: loss is nan at 3 log points in a row, and the last good checkpoint is "
        f"step {last}; try a lower learning rate in another --workdir."
    )
    with checkpoint.Store(tmp_path, {"seed": SEED, "train": {"steps": STEPS, "batch_size": BATCH}}) as store:
        assert store.latest() == last
    assert [row["loss"] is None for row in rows_of(tmp_path)] == [False] * 4 + [True] * 3


def test_a_last_step_without_a_finite_loss_is_not_a_finish(tmp_path):
    words = "stopped at step 12: loss is nan, and the last good checkpoint is step 8"
    with pytest.raises(ValueError, match=words):
        run(tmp_path, method=toy_method(nan_from=11), patience=100)
    assert checkpoint.product(tmp_path) is None


# Files and metrics.


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"b": object()})
    with pytest.raises(TypeError):
        files.write(tmp_path / "a.json", "text, not bytes")
    assert files.read_json(tmp_path / "a.json") == {"b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert files.read_json(tmp_path / "none.json") is None


def test_an_inventory_tells_every_kind_of_damage(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b"):
        (tmp_path / name).write_bytes(b"abcdef")
    expected = json.loads(json.dumps(files.inventory(tmp_path)))
    assert files.damage(tmp_path, expected) is None
    (tmp_path / "deep/b").write_bytes(b"abc")
    assert files.damage(tmp_path, expected) == "deep/b has 3 bytes instead of 6"
    (tmp_path / "deep/b").write_bytes(b"abcdeg")
    assert files.damage(tmp_path, expected) == "the contents of deep/b have changed"
    (tmp_path / "deep/b").unlink()
    assert files.damage(tmp_path, expected) == "deep/b is missing"


def test_metrics_are_cut_back_to_the_restored_step(tmp_path):
    log = writer.Writer(tmp_path)
    log.rewind(0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1 / step, "odd": float("inf")})
    log.close()
    path = tmp_path / "metrics.jsonl"
    kept = "".join(path.read_text().splitlines(keepends=True)[:2])
    path.write_text(path.read_text() + '{"step": 1, "lo')  # a kill in the middle of a line
    log.rewind(2)
    log.close()
    assert path.read_text() == kept and rows_of(tmp_path)[0] == {"step": 1, "loss": 1.0, "odd": None}


def test_writers_that_are_not_there_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no metrics writer 'csv'; known: jsonl, tensorboard, wandb"):
        writer.Writer(tmp_path, ("csv",))
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        words = rf"{package} is not installed; .*pip install fastdiff_jax\[{name}\]"
        with pytest.raises(ValueError, match=words):
            writer.Writer(tmp_path, (name,))


def test_tensorboard_gets_the_same_rows_and_forgets_the_same_ones(tmp_path, monkeypatch):
    rows = []
    events = SimpleNamespace(add_scalar=lambda *row: rows.append(row), close=lambda: rows.append("closed"))
    module = SimpleNamespace(SummaryWriter=lambda folder, purge_step: rows.append(purge_step) or events)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    log = writer.Writer(tmp_path, ("tensorboard",))
    log.rewind(4)
    log.write(5, {"loss": 2.0})
    log.close()
    assert rows == [5, ("loss", 2.0, 5), "closed"] and rows_of(tmp_path) == [{"step": 5, "loss": 2.0}]


# Products.


WEIGHTS = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones((), jnp.bfloat16)}
SHAPES = jax.eval_shape(lambda: WEIGHTS)


def finished(workdir, config=None):
    with checkpoint.Store(workdir, config or {"seed": 1}) as store:
        return store.finish(7, WEIGHTS)


def test_finished_weights_come_back_with_who_they_are(tmp_path):
    mark = finished(tmp_path)
    assert mark == finished(tmp_path) == checkpoint.fingerprint(WEIGHTS)  # the second one finds it done
    measured = {"method": {"samplers": {"euler 5": {"name": "euler", "nfe": 5}}}}  # in other ways: not trained
    for asked in ({"seed": 1}, {"seed": 1} | measured):
        chex.assert_trees_all_equal(checkpoint.load_product(tmp_path, SHAPES, asked), WEIGHTS)
    assert checkpoint.product(tmp_path) == (7, {"seed": 1}, mark)
    assert mark != checkpoint.fingerprint(WEIGHTS | {"kernel": WEIGHTS["kernel"].at[0, 0].add(1)})


def test_weights_of_an_unfinished_or_other_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match="edm_digits has no finished weights: train it first"):
        checkpoint.load_product(tmp_path / "edm_digits", SHAPES)
    finished(tmp_path)
    with pytest.raises(ValueError, match=r"another config, which differs in seed \(1 there, 2 here\)"):
        checkpoint.load_product(tmp_path, SHAPES, {"seed": 2, "evaluation": {"num": 3}})


@pytest.mark.parametrize(
    ("shape", "dtype", "here"),
    [((2, 4), jnp.float32, "float32[2, 4]"), ((2, 3), jnp.bfloat16, "bfloat16[2, 3]")],
)
def test_weights_of_other_shapes_or_dtypes_are_refused(tmp_path, shape, dtype, here):
    finished(tmp_path)
    with pytest.raises(ValueError) as error:
        checkpoint.load_product(tmp_path, SHAPES | {"kernel": jax.ShapeDtypeStruct(shape, dtype)})
    assert f"kernel is float32[2, 3] there and {here} here; use" in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "truncated", "swapped"])
def test_damaged_weights_are_refused_and_saved_anew(tmp_path, damage):
    finished(tmp_path)
    victim = max((tmp_path / "product").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        marker = files.read_json(tmp_path / "product.json")
        files.write_json(tmp_path / "product.json", marker | {"fingerprint": "0" * 64})
    with pytest.raises(ValueError, match=r"product .*; delete product\.json and run its training again"):
        checkpoint.load_product(tmp_path, SHAPES)
    (tmp_path / "product.json").unlink()
    finished(tmp_path)
    chex.assert_trees_all_equal(checkpoint.load_product(tmp_path, SHAPES), WEIGHTS)


# Purity.


def test_a_sampler_runs_under_pmap():
    """Nothing is built on pmap, but generate is pure, so it may be."""
    method, frozen = toy_method(), toy_frozen()
    state = method.init(rng.root(0, "init"), frozen)
    assert isinstance(state, State)
    generate, count = method.samplers["one"].generate, jax.local_device_count()
    keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(3 * count))
    images = jax.pmap(generate, in_axes=(None, None, 0, 0))(state.params, frozen, keys.reshape(count, 3), {})
    chex.assert_shape(images, (count, 3, *SHAPE))
    expected = generate(state.params, frozen, keys, {})
    np.testing.assert_allclose(images.reshape(expected.shape), expected, atol=1e-6)
