"""Killed, damaged and foreign runs: a resumed run equals an uninterrupted one, or says why not."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import chex
import jax.numpy as jnp
import pytest

from fastdiff_jax.runtime import checkpoint, files
from toy_run import BATCH, SEED, STEPS, run, toy_method

ROOT = Path(__file__).parents[1]
CONFIG = {"seed": SEED, "train": {"steps": STEPS, "batch_size": BATCH}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, outcome) of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir)


@pytest.fixture
def copy(whole, tmp_path):
    """A workdir like that of a run which stopped at its last checkpoint, to be damaged."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    return workdir


def child(options: dict) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/toy_run.py"), json.dumps(options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def state_of(workdir: Path):
    """Every byte below a workdir but the lock."""
    paths = sorted(path for path in workdir.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in paths}


def refused(workdir: Path, words: str, **options) -> str:
    """Asserts that a run is refused in one line with `words`, and that nothing in the workdir has changed."""
    before = state_of(workdir)
    with pytest.raises(ValueError, match=words) as error:
        run(workdir, **options)
    assert "\n" not in str(error.value)
    assert state_of(workdir) == before
    return str(error.value)


# Kills.


@pytest.mark.parametrize(
    ("options", "left"),
    [
        pytest.param({"kill_in_step": 3}, None, id="before-the-first-save"),
        pytest.param({"kill_in_step": 11}, 8, id="during-training"),
        pytest.param({"kill_in_save": "8.orbax-checkpoint-tmp*"}, 4, id="at-the-start-of-a-save"),
        pytest.param({"kill_in_save": "8.orbax-checkpoint-tmp*/state*/*/d"}, 4, id="amid-a-save"),
        pytest.param({"kill_after_commit": True}, 8, id="between-commit-and-inventory"),
    ],
)
def test_a_killed_run_continues_to_the_same_bits(whole, tmp_path, options, left):
    ended = child({"workdir": str(tmp_path)} | options)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    # A fast disk may still have committed what a kill was to interrupt.
    assert max(saved, default=None) == left or ("kill_in_save" in options and max(saved) == 8)
    outcome = run(tmp_path)
    assert outcome.finished
    chex.assert_trees_all_equal(outcome.state, whole[1].state)
    assert (tmp_path / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()
    assert checkpoint.product(tmp_path) == checkpoint.product(whole[0])
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert sorted(files.read_json(tmp_path / "checkpoints.json")) == ["12", "8"]


def test_sigterm_ends_a_process_in_good_order(whole, tmp_path):
    ended = child({"workdir": str(tmp_path), "terminate_in_step": 5})
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"step": 6, "finished": False}
    ended = child({"workdir": str(tmp_path)})
    assert json.loads(ended.stdout) == {"step": STEPS, "finished": True}, ended.stderr
    assert checkpoint.product(tmp_path) == checkpoint.product(whole[0])  # bit for bit, in another process


def test_a_finished_run_trains_no_more(copy, whole):
    before = state_of(copy)
    outcome = run(copy, batches=SimpleNamespace(set_state=lambda position: None))
    chex.assert_trees_all_equal(outcome.state, whole[1].state)
    assert state_of(copy) == before


def test_milestones_and_the_latest_stay(tmp_path):
    def store(workdir, config):
        return checkpoint.Store(workdir, config, keep=1, milestones=4)

    run(tmp_path, store=store, save_every=2)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [4, 8, 12]


# Damage.


def test_every_missing_truncated_or_altered_file_is_noticed(copy):
    folder = copy / "checkpoints" / "12"
    victims = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(victims) >= 8
    for victim in victims:
        data = victim.read_bytes()
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data
        for bad in (None, data[:middle], flipped):
            if bad == data:
                continue
            victim.unlink() if bad is None else victim.write_bytes(bad)
            message = refused(copy, "checkpoint .*12 is damaged: ")
            assert message.endswith("delete that directory to continue from step 8.")
        victim.write_bytes(data)
    assert run(copy).finished


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt"])
def test_damage_is_noticed_without_the_inventory_too(copy, name):
    """As after a kill between commit and inventory, where only orbax's own checks are left."""
    (copy / "checkpoints.json").unlink()
    victim = copy / "checkpoints" / "12" / name
    victim.write_bytes(victim.read_bytes()[:20])
    refused(copy, "checkpoint .*12 is damaged: ")


def test_deleting_the_damaged_checkpoint_continues_from_the_older_one(copy, whole):
    (copy / "checkpoints/12/state/_METADATA").unlink()
    (copy / "product.json").unlink()
    refused(copy, "delete that directory to continue from step 8")
    shutil.rmtree(copy / "checkpoints" / "12")
    chex.assert_trees_all_equal(run(copy).state, whole[1].state)
    assert (copy / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


def test_starting_over_does_not_remember_the_old_files(copy, whole):
    """The inventory of the old step 12 must not condemn the new one."""
    for step in ("8", "12"):
        shutil.rmtree(copy / "checkpoints" / step)
    run(copy, save_every=STEPS)
    chex.assert_trees_all_equal(run(copy).state, whole[1].state)


@pytest.mark.parametrize("name", ["config.json", "checkpoints.json"])
def test_a_damaged_json_file_is_named_and_may_be_deleted(copy, name):
    (copy / name).write_text((copy / name).read_text()[:-9])
    assert refused(copy, "is not JSON; delete it").startswith(str(copy / name))
    (copy / name).unlink()
    run(copy)
    assert (copy / name).exists()


# Other runs.


def test_a_run_of_another_config_is_refused_with_the_keys_that_differ(copy):
    other = {"seed": SEED + 1, "train": {"steps": STEPS, "batch_size": 2 * BATCH}, "method": {"name": "sid"}}
    message = refused(copy, "holds a run of another config", config=other)
    assert (
        "differs in method.name (absent there, sid here), seed (5 there, 6 here), "
        "train.batch_size (16 there, 32 here); choose another --workdir" in message
    )
    (copy / "config.json").unlink()  # each checkpoint has a copy
    refused(copy, "holds a run of another config", config=other)


def test_settings_that_touch_no_weights_may_change(copy, whole):
    train = CONFIG["train"] | {"log_every": 1, "keep": 9}
    free = {"evaluation": {"num": 3}, "mesh": {"data": -1}, "train": train}
    outcome = run(copy, config=CONFIG | free)
    chex.assert_trees_all_equal(outcome.state, whole[1].state)
    assert files.read_json(copy / "config.json") == CONFIG | free


@pytest.mark.parametrize(
    ("method", "here"),
    [(toy_method(width=32), "float32[16, 32]"), (toy_method(dtype=jnp.bfloat16), "bfloat16[16, 24]")],
    ids=["shape", "dtype"],
)
def test_a_state_of_other_shapes_or_dtypes_is_refused(copy, method, here):
    message = refused(copy, "does not fit this model", method=method)
    assert f"ema/first/kernel is float32[16, 24] there and {here} here (and " in message


def test_a_state_with_other_leaves_is_refused(copy, whole):
    saved = whole[1].state
    with checkpoint.Store(copy, CONFIG) as store:
        for template, words in (
            (saved._replace(ema={}), "ema/first/kernel is float32.* there and absent here"),
            (saved._replace(start={"extra": saved.start}), "start is float32.* there and absent here"),
        ):
            with pytest.raises(ValueError, match=words):
                store.restore(template)


def test_one_process_at_a_time(copy):
    with checkpoint.Store(copy, CONFIG):
        refused(copy, rf"in use by another process \(pid {os.getpid()}\); wait for it")
    with open(copy / ".lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        ended = child({"workdir": str(copy)})
        assert ended.returncode and "in use by another process" in ended.stderr
    assert run(copy).finished


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run cannot be written .*; choose another with --workdir"):
        run(tmp_path / "file" / "run")
