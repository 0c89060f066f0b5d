"""Trained deltas: which weights they belong to, how large they are beside them, and files of them.

A delta is the tree that a student's adapter trains. Alone it is a fraction of a network, and on other weights
than those that it was trained with it is worth nothing, so a run keeps their fingerprint, and so does a file.

    workdir/base.json    {"teacher": fingerprint of the weights below the delta}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fastdiff_jax import trees
from fastdiff_jax.metrics import features
from fastdiff_jax.runtime import checkpoint, experiment, files
from fastdiff_jax.runtime.assemble import Job
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.types import Params, PyTree, State

KIND = "lora"


def base(run: Experiment, job: Job) -> Experiment:
    """The experiment whose weights are below the run's delta."""
    return experiment.prerequisite(job.prerequisites["teacher"], run.workdir)


def keep_base(run: Experiment, job: Job, begun: bool) -> None:
    """Notes the finished weights below a delta when its training begins; without an adapter, nothing.

    Args:
      begun: whether there are checkpoints of the run.
    Raises: ValueError if it has begun on other weights, or nothing tells on which.
    """
    path = run.workdir / "base.json"
    if job.parts.adapter is None or path.exists():
        check_base(run, job)
    elif begun:
        raise ValueError(
            f"{run.workdir} has checkpoints of a delta but no base.json, which tells the weights below it; "
            "restore that file, or train the delta anew in another --workdir."
        )
    elif jax.process_index() == 0:
        files.write_json(path, {"teacher": checkpoint.product(base(run, job).workdir).fingerprint})


def check_base(run: Experiment, job: Job) -> None:
    """Raises ValueError if the weights below a run's delta are no more those that it was trained with."""
    if job.parts.adapter is None:
        return
    basis = base(run, job)
    known = (files.read_json(run.workdir / "base.json") or {}).get("teacher", "unknown")
    found = checkpoint.product(basis.workdir)
    if found is not None and found.fingerprint != known:
        raise ValueError(
            f"the delta in {run.workdir} was trained on weights {known[:12]}, and {basis.workdir} holds "
            f"{found.fingerprint[:12]}; restore those, or train the delta anew in another --workdir."
        )


def described(teacher: Params, state: State) -> str:
    """How much a method trains beside its teacher, in a sentence; works on shapes."""
    trained, whole = trees.parameters(state.params), trees.parameters(teacher)
    text = f"trained: {trained:,} parameters, {trained / whole:.1%} of the teacher's {whole:,}"
    beside = {"discriminator": "head", "separate fake score": "fake"}
    counts = {name: trees.parameters(getattr(state, field, {})) for name, field in beside.items()}
    others = " and ".join(f"the {name}'s {count:,}" for name, count in counts.items() if count)
    return text + (f"; {others} are not among them" if others else "")


def serialise(delta: PyTree, run: Experiment, step: int, fingerprint: str) -> bytes:
    """A delta as safetensors: leaves by their paths, and beside them all that using it takes but the base.

    Args:
      fingerprint: of the weights below it.
    """
    about = {
        "kind": KIND,
        "lora": run.config.models.student.lora.to_dict(),
        "base": {"name": experiment.name_of(run.config.teacher), "fingerprint": fingerprint},
        "step": step,
        "config": run.config.to_dict(),
    }
    return features.serialise(delta, about)


def read(path: Path) -> tuple[PyTree, Mapping[str, Any]]:
    """(delta, what `serialise` put beside it). Raises: ValueError if there is no such file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; launch/convert.py --kind lora writes one.")
    try:
        delta, about = features.deserialise(path.read_bytes(), path.name)
    except ValueError:
        about = {}
    if about.get("kind") != KIND:
        raise ValueError(f"{path} holds no delta; launch/convert.py --kind lora writes them.")
    return delta, about
