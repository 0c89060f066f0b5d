"""Rows of a study whose noise levels are searched for: those with a schedule of the name gits."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdiff_jax import registry
from fastdiff_jax.runtime import files, search
from fastdiff_jax.runtime.experiment import Experiment

NAME = "gits"


def request_of(sampler: Mapping[str, Any], counts: Sequence[int]) -> search.Request | None:
    """What a row's levels are searched with, or None if its schedule is another.

    Args:
      sampler: its request, with schedule = dict(name="gits", ...settings of `search.Request`).
      counts: of network calls; the solver makes one a step.
    Raises: ValueError for unknown settings, and numbers of steps that a search cannot have.
    """
    schedule = sampler.get("schedule") or {}
    if schedule.get("name") != NAME:
        return None
    own = {"steps": tuple(counts), "solver": sampler["name"], "afs": sampler.get("afs", False)}
    request = registry.options(search.Request, {**schedule, **own}, "schedule gits")
    search.check(request)
    return request


def found(
    path: Path, teacher: Experiment, request: search.Request, about: Mapping[str, Any]
) -> dict[int, list[float]]:
    """Levels by network calls: those in the file, or those of a search, which are written there.

    Args:
      about: what the levels depend on beside the request, JSON.
    """
    whose = [about, teacher.config.seed, teacher.config.evaluation.batch_size, request._asdict()]
    identity = hashlib.sha256(json.dumps(whose, sort_keys=True).encode()).hexdigest()
    kept = files.read_json(path)
    if not kept or kept["identity"] != identity:
        levels = {n: sigmas.tolist() for n, sigmas in search.levels(teacher, request).items()}
        kept = {"identity": identity, "levels": levels}
        files.write_json(path, kept)
    return {int(nfe): sigmas for nfe, sigmas in kept["levels"].items()}
