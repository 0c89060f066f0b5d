"""Recorded teachers in a run: whether a recording fits it, and what batches then hold."""

import json
from typing import Any

import jax
import numpy as np

from fastdiff_jax import registry, trees
from fastdiff_jax.data import pairs
from fastdiff_jax.runtime import checkpoint
from fastdiff_jax.runtime.assemble import Job
from fastdiff_jax.types import Frozen, Recording


def recording_of(job: Job) -> Recording:
    """What of the method's step can be recorded. Raises: ValueError naming methods that have such a thing."""
    build = registry.load("methods", job.config.method.name, "recording")
    return build(job.config.method.to_dict(), job.parts)


def identity(job: Job, frozen: Frozen | None = None) -> dict[str, Any]:
    """What recorded states depend on, as JSON gives it back.

    Args:
      frozen: the teacher's weights; without, what the config alone says.
    """
    known = {
        "method": job.config.method.name,
        "shape": list(job.data.shape),
        "classes": job.classes,
        "recipe": recording_of(job).recipe,
    }
    if frozen is not None:
        known |= {"teacher": checkpoint.fingerprint(frozen["teacher"]), "data": job.data.fingerprint}
    return json.loads(json.dumps(known))


def check(job: Job, frozen: Frozen | None = None) -> None:
    """Raises ValueError if the job trains on a recording that is not of its method, settings and teacher.

    Args: as `identity`'s.
    """
    if not isinstance(job.data.train, pairs.Recorded):
        return
    train, asked = job.data.train, identity(job, frozen)
    if found := difference({key: train.header.get(key) for key in asked}, asked):
        raise ValueError(
            f"the recording in {train.folder} {found}; make one for this run with launch/record.py, in another "
            "folder (--out, config.data.folder), or take the setting back."
        )


def difference(there: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """The first difference between two headers in words, or None."""
    old, new = dict(trees.named(there)), dict(trees.named(asked))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"has {key} {old.get(key, 'not stated')}, this run {new.get(key, 'not stated')}"
    return None


def batch_shapes(job: Job, frozen: Frozen, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch of `size` rows; nothing is read.

    Args:
      frozen: the teacher's weights, or their shapes.
    """
    images = jax.ShapeDtypeStruct((size, *job.parts.shape), np.float32)
    label = jax.ShapeDtypeStruct((size,), np.int32)
    if not isinstance(job.data.train, pairs.Recorded):
        return {"image": images, "label": label}
    one_hot = jax.ShapeDtypeStruct((size, job.classes), np.float32)
    cond = {"label": one_hot} if job.classes else {}
    states = jax.eval_shape(recording_of(job).states, frozen, images, cond)
    return {"latents": images, "states": states, "label": label}
