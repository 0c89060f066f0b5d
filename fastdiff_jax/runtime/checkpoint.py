"""Checkpoints of a run, and the finished weights that it leaves.

The API is orbax's v1 (`from orbax.checkpoint import v1`; in 0.12 an alias of `experimental.v1`),
its documented default: `training.Checkpointer` saves in the background once the arrays are safe from
donation, commits by renaming, prunes, and `load_checkpointables` restores straight into the shardings
of any topology. CheckpointManager has nothing that is missing there. What neither has is added here:
the comparison of shapes and dtypes before a restore (orbax casts silently), an inventory of the files
of every committed checkpoint (orbax 0.12 misses damage in seven of its ten files, among them the
metadata, and loads a flipped bit of an array as another number), and a lock.

    workdir/config.json        what the run is; a run of another config is refused
    workdir/checkpoints/<n>/   state after n steps, config and data-iterator position (custom metadata)
    workdir/checkpoints.json   {n: {file: [bytes, crc32]}}
    workdir/product/           the finished weights, and product.json, written last: who they are
    workdir/snapshots/<n>/     averages after n steps, see `runtime.posthoc`; their files are in snapshots.json
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from fastdiff_jax import trees
from fastdiff_jax.runtime import files
from fastdiff_jax.types import Params, PyTree, State

# What may change between the sessions of one run, as it touches neither weights nor draws.
FREE = re.compile(
    r"(evaluation|mesh|method\.samplers)(\..*)?|"
    r"train\.(log_every|save_every|keep|milestones|patience|writers)(\..*)?"
)

# What orbax and tensorstore raise on files that are not as they were written.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OSError)


class Product(NamedTuple):
    """Who the finished weights are."""

    step: int
    config: Mapping[str, Any]
    fingerprint: str  # sha256 of the weights, see `fingerprint`


class Store:
    """The files of one run. It holds the workdir's lock until `close`.

    Args:
      workdir: created if it does not exist.
      config: what JSON can hold; compared with that of the run found in `workdir`, except for FREE keys.
      keep: latest checkpoints that stay.
      milestones: checkpoints at multiples of this many steps stay for good; None for none.
    Raises: ValueError if the workdir cannot be written, is in use, or holds a run of another config.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any], keep: int = 2,
                 milestones: int | None = None):  # fmt: skip
        if keep < 1:
            raise ValueError(f"keep counts the latest checkpoints that stay, at least 1; got {keep}.")
        self.workdir = Path(workdir).absolute()
        self.config = json.loads(json.dumps(config))
        self._root = self.workdir / "checkpoints"
        self._inventories = self.workdir / "checkpoints.json"
        self._snapshots = self.workdir / "snapshots"
        self._lock = None
        try:
            _on_primary(self._claim)
        except ValueError:
            self._release()
            raise
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep)] + ([policies.EveryNSteps(milestones)] if milestones else [])
        self._policy = policies.AnyPreservationPolicy(kept)
        # Made by the first save: it reads all steps, and by then the latest has been verified.
        self._checkpointer = None
        self._saver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._saving = None

    def latest(self) -> int | None:
        """Step of the newest committed checkpoint, damaged or not."""
        return max(self._steps(), default=None)

    def save(self, step: int, state: State, position: Any) -> None:
        """Saves in the background; the state may be donated as soon as this returns.

        Args:
          position: state of the data iterator, JSON; the same on every process.
        """
        self.wait()
        _assert_equal(position, "the data iterators of the processes stand at different positions")
        if self._checkpointer is None:
            training = ocp.training
            self._checkpointer = training.Checkpointer(self._root, preservation_policy=self._policy)
        about = {"config": self.config, "position": position}
        response = self._checkpointer.save_checkpointables_async(
            step, {"state": state}, force=True, custom_metadata=about
        )
        # orbax calls post_finalization_callback before the commit, so the inventory has its thread.
        self._saving = self._saver.submit(lambda: (response.result(), self._record(step)))

    def restore(self, template: State, step: int | None = None) -> tuple[State, Any, int]:
        """The newest checkpoint as (state, position of the data iterator, step).

        Args:
          template: arrays or ShapeDtypeStructs with shardings; the state arrives in those, whatever
            it was saved on.
          step: of an older one that stayed, see `milestones`.
        Raises: ValueError if there is none, it is damaged, or its shapes or dtypes are not the
          template's. An older one is never taken instead: what to give up is the user's decision.
        """
        asked, step = step, self.latest() if step is None else step
        if step is None:
            raise ValueError(f"{self.workdir} has no checkpoint to restore; train it first.")
        if asked is not None and asked not in self._steps():
            raise ValueError(
                f"{self.workdir} has no checkpoint of step {asked}; train it anew with train.save_every and "
                "train.milestones that divide this."
            )
        _on_primary(lambda: self._verify(step))
        folder, template = self._root / str(step), _abstract(template)
        try:
            saved = ocp.checkpointables_metadata(folder)
            position, tree = saved.custom_metadata["position"], saved.metadata["state"]
        except _UNREADABLE as error:
            raise ValueError(self._damaged(step, _first_line(error))) from error
        if tree is None:  # orbax logs why
            raise ValueError(self._damaged(step, "its array metadata cannot be read"))
        _check_fits(folder, tree, template)
        try:
            state = ocp.load_checkpointables(folder, {"state": template})["state"]
        except _UNREADABLE as error:
            raise ValueError(self._damaged(step, _first_line(error))) from error
        if str(step) not in (files.read_json(self._inventories) or {}):
            self._record(step)  # its run was killed between commit and inventory
        return state, position, step

    def finish(self, step: int, weights: Params) -> str:
        """Saves the product of a finished run as `product/`, unless it is there; its fingerprint."""
        self.wait()
        mark = fingerprint(weights)
        marker = files.read_json(self.workdir / "product.json")
        if marker is not None and (marker["step"], marker["fingerprint"]) == (step, mark):
            return mark
        _on_primary(lambda: (self.workdir / "product.json").unlink(missing_ok=True))
        folder = self.workdir / "product"
        ocp.save(folder, weights, overwrite=True)
        about = {"step": step, "config": self.config, "fingerprint": mark}

        def finish():
            about["files"] = files.inventory(folder)
            files.write_json(self.workdir / "product.json", about)

        _on_primary(finish)
        return mark

    def snapshot(self, step: int, averages: Sequence[Params]) -> None:
        """Keeps averages of weights for good. One of this step that is there is replaced.

        It returns when they are on disk: saved before the checkpoint of the same step, none is ever missing
        in a run that goes on from there.
        """
        self.wait()
        folder = self._snapshots / str(step)
        ocp.save(folder, list(averages), overwrite=True)

        def record():
            path = self.workdir / "snapshots.json"
            files.write_json(path, (files.read_json(path) or {}) | {str(step): files.inventory(folder)})

        _on_primary(record)

    def wait(self) -> None:
        """Returns when everything saved is committed. Raises what a background save has raised."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Waits, and gives the workdir up."""
        try:
            self.wait()
            if self._checkpointer is not None:
                self._checkpointer.close()
        finally:
            self._saver.shutdown()
            self._release()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _claim(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock = files.Lock(self.workdir)
            saved = self._saved_config()
            if saved is not None and (keys := _differing(saved, self.config)):
                raise ValueError(
                    f"{self.workdir} holds a run of another config, which differs in {', '.join(keys)}; "
                    "choose another --workdir, or take these values back."
                )
            for folder in (self._root, self._snapshots):
                for partial in folder.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(partial)  # a kill came before the commit
            files.write_json(self.workdir / "config.json", self.config)
        except OSError as error:
            raise ValueError(
                f"workdir {self.workdir} cannot be written ({error.strerror}: {error.filename}); "
                "choose another with --workdir."
            ) from error

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _saved_config(self) -> Any:
        saved = files.read_json(self.workdir / "config.json")
        if saved is None and (step := self.latest()) is not None:
            try:
                metadata = ocp.checkpointables_metadata(self._root / str(step))
                saved = metadata.custom_metadata["config"]
            except _UNREADABLE as error:
                raise ValueError(self._damaged(step, _first_line(error))) from error
        return saved

    def _steps(self) -> list[int]:
        found = (path for path in self._root.iterdir() if path.name.isdigit() and path.is_dir())
        return sorted(int(path.name) for path in found)

    def _record(self, step: int) -> None:
        """Takes the inventory of a committed checkpoint, and drops those of pruned ones."""
        if jax.process_index() == 0:
            known = files.read_json(self._inventories) or {}
            known[str(step)] = files.inventory(self._root / str(step))
            there = [str(step) for step in self._steps()]
            files.write_json(self._inventories, {name: known[name] for name in there if name in known})

    def _verify(self, step: int) -> None:
        expected = (files.read_json(self._inventories) or {}).get(str(step), {})
        if (found := files.damage(self._root / str(step), expected)) is not None:
            raise ValueError(self._damaged(step, found))

    def _damaged(self, step: int, found: str) -> str:
        older = [other for other in self._steps() if other < step]
        fallback = f"continue from step {older[-1]}" if older else "start over"
        return f"checkpoint {self._root / str(step)} is damaged: {found}; delete that directory to {fallback}."


def product(workdir: Path) -> Product | None:
    """Who the finished weights of a run are, or None if it has not finished."""
    marker = files.read_json(Path(workdir) / "product.json")
    return marker and Product(marker["step"], marker["config"], marker["fingerprint"])


def load_product(workdir: Path, template: Params,
                 config: Mapping[str, Any] | None = None) -> Params:  # fmt: skip
    """The finished weights of a run: a student's teacher, or what samples are drawn from.

    Args:
      template: arrays or ShapeDtypeStructs; leaves without a sharding go to the first device.
      config: if given, what the run must have been, except for FREE keys.
    Raises: ValueError if the run has not finished, is of another config, its files are damaged, or its
      shapes or dtypes are not the template's.
    """
    folder = Path(workdir).absolute() / "product"
    marker = files.read_json(Path(workdir) / "product.json")
    if marker is None:
        raise ValueError(
            f"{workdir} has no finished weights: train it first "
            f"(launch/main.py with its config and --workdir {workdir})."
        )
    asked = marker["config"] if config is None else json.loads(json.dumps(config))
    if keys := _differing(marker["config"], asked):
        raise ValueError(
            f"{workdir} was trained with another config, which differs in {', '.join(keys)}; "
            "choose another --workdir, or take these values back."
        )
    advice = "delete product.json and run its training again, which saves them from the last checkpoint"
    weights = _read(folder, marker["files"], template, advice)
    if fingerprint(weights) != marker["fingerprint"]:
        raise ValueError(f"{folder} does not hold the weights that product.json names; {advice}.")
    return weights


def snapshots(workdir: Path) -> list[int]:
    """The steps whose averages a run has kept, in order."""
    return sorted(map(int, files.read_json(Path(workdir) / "snapshots.json") or {}))


def load_snapshot(workdir: Path, step: int, template: Sequence[Params]) -> list[Params]:
    """Averages that `Store.snapshot` has kept. Raises: ValueError if damaged, or of other shapes or dtypes."""
    folder = Path(workdir).absolute() / "snapshots" / str(step)
    inventory = files.read_json(Path(workdir) / "snapshots.json")[str(step)]
    return _read(folder, inventory, list(template), "restore it from a copy, or train in another --workdir")


def fingerprint(tree: PyTree) -> str:
    """sha256 over path, dtype, shape and bytes of every leaf, whatever the shardings."""
    digest = hashlib.sha256()
    for path, leaf in trees.named(tree):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        value = np.ascontiguousarray(leaf)
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


class _Misfit(ValueError):
    pass


def _read(folder: Path, inventory: files.Inventory, template: PyTree, advice: str) -> PyTree:
    """A tree that `ocp.save` has written, verified. Raises: ValueError with `advice` if it is damaged."""
    if (found := files.damage(folder, inventory)) is not None:
        raise ValueError(f"{folder} is damaged: {found}; {advice}.")
    template = _abstract(template)
    try:
        _check_fits(folder, ocp.metadata(folder).metadata, template)
        return ocp.load(folder, template)
    except _Misfit:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{folder} is damaged: {_first_line(error)}; {advice}.") from error


def _abstract(template: PyTree) -> PyTree:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def outline(leaf):
        sharding = getattr(leaf, "sharding", None) or here
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(outline, template)


def _check_fits(where: Path, saved: PyTree, template: PyTree) -> None:
    def described(tree):
        return {path: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in trees.named(tree)}

    there, here = described(saved), described(template)
    wrong = [
        f"{path} is {there.get(path, 'absent')} there and {here.get(path, 'absent')} here"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise _Misfit(
            f"{where} does not fit this model: {wrong[0]}{more}; "
            "use the settings it was saved with, or another --workdir."
        )


def _differing(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """`key (there -> here)` for every key outside FREE, dotted."""
    there, here, absent = _flat(saved), _flat(asked), "absent"
    return [
        f"{key} ({there.get(key, absent)} there, {here.get(key, absent)} here)"
        for key in sorted(there.keys() | here.keys())
        if not FREE.fullmatch(key) and there.get(key, absent) != here.get(key, absent)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    flat = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def _on_primary(action: Callable[[], Any]) -> None:
    """Runs `action` on process 0 alone; its ValueError stops all processes, so that none waits."""
    problem = None
    if jax.process_index() == 0:
        try:
            action()
        except ValueError as error:
            problem = error
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.int32(problem is not None))
        if failed and problem is None:
            problem = ValueError("process 0 refused the workdir; its message says why.")
    if problem is not None:
        raise problem


def _assert_equal(position: Any, message: str) -> None:
    if jax.process_count() > 1:
        digest = hashlib.sha256(json.dumps(position, sort_keys=True).encode()).digest()
        multihost_utils.assert_equal(np.frombuffer(digest, np.uint8), message)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
