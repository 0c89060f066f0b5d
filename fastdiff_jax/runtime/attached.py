"""Deltas on their way: out of the run that trained them, and onto another copy of their teacher."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from fastdiff_jax.runtime import (
    assemble,
    checkpoint,
    commands,
    converted,
    deltas,
    experiment,
    settings,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.experiment import Experiment


def exported(workdir: Path) -> bytes:
    """The delta of a finished run as a file, see `deltas.serialise`.

    Raises: ValueError if the folder holds no finished weights, those of a whole network, or a delta whose
      teacher has changed.
    """
    if experiment.folder(str(workdir)) is None:
        raise ValueError(f"--workdir {workdir} is no folder of finished weights; name a finished run.")
    made = experiment.load(str(workdir))
    run, job = Experiment(workdir.name, made, workdir), assemble.assemble(made, outline=True)
    if job.parts.adapter is None:
        raise ValueError(f"{workdir} holds a whole network, no delta; use --kind export.")
    delta = commands.product(job, run, meshes.make(made.mesh))
    below = checkpoint.product(deltas.base(run, job).workdir)
    return deltas.serialise(delta, run, checkpoint.product(workdir).step, below.fingerprint)


def attach(file: Path, teacher: str, out: Path) -> str:
    """Writes the folder `out`, a finished run whose teacher is the one in the folder `teacher`.

    Returns: what was done, in words.
    Raises: ValueError for a file that is no delta, a folder without finished weights, and a delta of other
      targets, shapes, images or weights.
    """
    delta, about = deltas.read(file)
    if experiment.folder(teacher) is None:
        raise ValueError(f"--teacher {teacher} is no folder of finished weights; name a finished run.")
    made = experiment.from_json(about["config"])
    made.teacher = str(Path(teacher).absolute())
    run = Experiment(out.name, made, out)
    job = assembled(file, made)
    basis = deltas.base(run, job)
    settings.check(basis.config)
    commands.check_images(job, run, basis)
    (frozen, _), below = commands.basis_shapes(job), checkpoint.product(basis.workdir)
    jax.eval_shape(job.parts.adapter.merge, frozen["teacher"], delta)  # refuses what does not fit
    if below.fingerprint != about["base"]["fingerprint"]:
        raise ValueError(
            f"{file} was trained on weights {about['base']['fingerprint'][:12]} ({about['base']['name']}), and "
            f"{teacher} holds {below.fingerprint[:12]}; a delta is for its own weights: name a copy of those."
        )
    documents = {"base.json": {"teacher": below.fingerprint}}
    converted.place(out, made, delta, documents, about["step"])
    return deltas.described(frozen["teacher"], commands.state_shapes(job))


def assembled(file: Path, made: ConfigDict) -> assemble.Job:
    """The experiment of a delta's file, without its data.

    Raises: ValueError if this package, or the teacher, does not have what it needs.
    """
    settings.check(made)
    job = assemble.assemble(made, outline=True)
    if job.parts.adapter is None:
        raise ValueError(f"{file} is damaged: its config trains a whole network; export the delta again.")
    return job
