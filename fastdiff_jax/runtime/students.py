"""Rows of a study that are trained: each is an experiment of its own, with a cost stated three ways."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from fastdiff_jax import registry
from fastdiff_jax.data import pairs
from fastdiff_jax.runtime import commands, experiment, recorded, report, results, sessions, settings
from fastdiff_jax.runtime.assemble import Job, assemble
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.types import Frozen, Params


class Student(NamedTuple):
    """An experiment in a study."""

    row: str  # of the study's tables
    run: Experiment


class Loaded(NamedTuple):
    """A trained student."""

    job: Job
    weights: Params
    frozen: Frozen


class Cost(NamedTuple):
    """What experiments took to train."""

    row: str
    runs: Sequence[str]  # names of the experiments, in the order of training
    seconds: float  # wall time, compilation included
    images: int  # drawn in training, with repetition; of data-free methods, trajectories begun
    evaluations: int | None  # of networks on one image: forward 1, gradient 3; None if a method states none
    calls: Sequence[int] = ()  # of the samplers that were trained


def of(study: Experiment) -> list[Student]:
    """A study's students in the table's order. Raises: ValueError for configs that cannot be."""
    found, rows = [], (study.config.study.get("students") or {}).items()
    for row, given in sorted(rows, key=lambda item: results.natural(item[0])):
        student = registry.options(settings.Student, given.to_dict(), f"student {row}")
        for reference in student.references():
            run = experiment.changed(reference, student.changes or {}, study.workdir)
            found.append(Student(row, run))
    return found


def check(students: Sequence[Student], basis: Experiment, mesh: Mesh, known: commands.Outlines) -> None:
    """Raises ValueError for a student that could not be trained and compared, before any is trained.

    That is one of other data or another teacher than the study's, two that a table would confuse, what
    `commands.check` refuses, and a finished one that other settings have made; `known` as there.
    """
    for row, run in students:
        settings.check(run.config)
        own, theirs = (data.get("source", data).to_dict() for data in (run.config.data, basis.config.data))
        if own != theirs:
            raise ValueError(
                f"student {row} is trained for the data {own}, the study's teacher {basis.name} for {theirs}; "
                "compare on the same."
            )
        above = [one.name for one in lineage(run)[:-1]]
        if basis.name not in above:
            raise ValueError(
                f"student {row} builds on {', '.join(above) or 'nothing'}, not on the study's teacher "
                f"{basis.name}; name a student of this teacher."
            )
        commands.check(run, known)
        if commands.finished(run):
            commands.product(assemble(run.config, outline=True), run, mesh)
    samplers(students)


def lineage(run: Experiment) -> list[Experiment]:
    """What an experiment builds on, through all generations, and itself last; each once."""
    found = {}
    for key in ("teacher", "init_from"):
        if reference := run.config.get(key):
            above = lineage(experiment.prerequisite(reference, run.workdir))
            found |= {one.name: one for one in above}
    return [*found.values(), run]


def samplers(students: Sequence[Student]) -> dict[tuple[str, int], tuple[Student, str]]:
    """Who fills a cell, by row and network calls: the student, and its sampler by name.

    Raises: ValueError if two would fill the same, or a student has no sampler.
    """
    cells = {}
    for student in students:
        own = assemble(student.run.config, outline=True).method.samplers
        if not own:
            raise ValueError(f"student {student.row}: {student.run.name} makes no images; name another.")
        for name, sampler in own.items():
            key = (student.row, sampler.nfe)
            if key in cells:
                raise ValueError(
                    f"student {student.row} has two samplers of {sampler.nfe} network calls, "
                    f"{cells[key][1]!r} of {cells[key][0].run.name} and {name!r} of {student.run.name}; a "
                    "row has one a number of calls."
                )
            cells[key] = (student, name)
    return cells


def trained(students: Sequence[Student]) -> bool:
    """Trains whoever is not; False if SIGTERM stopped it."""
    return all(commands.finished(run) or commands.fit(run) for _, run in students)


def loaded(student: Student, mesh: Mesh) -> Loaded:
    """A finished student. Raises: ValueError as `commands.product`."""
    run, job = student.run, assemble(student.run.config)
    frozen, _ = commands.starting_weights(job, run, mesh)
    return Loaded(job, commands.product(job, run, mesh), frozen)


def costs(students: Sequence[Student], basis: Experiment) -> list[Cost]:
    """The teacher's cost first, then that of every student with all that it builds on but the teacher."""
    above = lineage(basis)
    known = {one.name for one in above}
    cells, found = samplers(students), [_cost("teacher", above)]
    for student in students:
        runs = [one for one in lineage(student.run) if one.name not in known]
        calls = [nfe for (_, nfe), (owner, _) in cells.items() if owner is student]
        found.append(_cost(student.row, runs, calls))
    return found


def _cost(row: str, runs: Sequence[Experiment], calls: Sequence[int] = ()) -> Cost:
    made = [_evaluations(run) for run in runs]
    return Cost(
        row,
        runs=[run.name for run in runs],
        seconds=sum(sessions.seconds(run.workdir) for run in runs),
        images=sum(run.config.train.steps * run.config.train.batch_size for run in runs),
        evaluations=None if None in made else sum(made),
        calls=calls,
    )


def _evaluations(run: Experiment) -> int | None:
    """Network evaluations of a training, counted step by step as its variants were, and of its recording."""
    job, train = assemble(run.config, outline=True), run.config.train
    if job.method.cost is None:
        return None
    made, kept = 0, isinstance(job.data.train, pairs.Recorded)
    if kept:
        rows = sum(shard["rows"] for shard in job.data.train.contents["shards"])
        made = rows * recorded.recording_of(job).calls
    steps = Counter(job.method.variant(step, run.config.seed) for step in range(train.steps))
    each = sum(count * job.method.cost(variant, kept) for variant, count in steps.items())
    return made + train.batch_size * each


def shares(cost: Cost, teacher: Cost) -> tuple[float, float | None]:
    """A student's images and network evaluations as shares of the teacher's."""
    known = None not in (cost.evaluations, teacher.evaluations)
    return cost.images / teacher.images, cost.evaluations / teacher.evaluations if known else None


def table(costs: Sequence[Cost]) -> list[str]:
    """The lines of a Markdown table: seconds, images, network evaluations, and shares of the teacher's."""
    teacher = costs[0]
    lines = [
        "| row | NFE | trained | seconds | images | of the teacher's | evaluations | of the teacher's |",
        "| --- | --- | --- |" + " ---: |" * 5,
    ]
    for cost in costs:
        images, evaluations = shares(cost, teacher)
        made = "not stated" if cost.evaluations is None else f"{cost.evaluations:,}"
        share = "" if evaluations is None else f"{evaluations:.1%}"
        calls, runs = ", ".join(map(str, cost.calls)), ", ".join(cost.runs)
        seconds, drawn = f"{cost.seconds:.0f}", f"{cost.images:,}"
        cells = [cost.row, calls, runs, seconds, drawn, f"{images:.1%}", made, share]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def against(cells: Sequence, rows: Sequence[str], column: str) -> list[str]:
    """A Markdown table of what students gain: multiples of the training-free samplers' distances.

    Args:
      cells: `study.Cell`s.
      rows: those of students.
      column: the measure.
    """
    free, ratio = [cell for cell in cells if cell.solver not in rows], "{:.2f}".format
    lines = [
        f"| row | NFE | {results.heading(column)} | training-free at this NFE | x that | x {_most(free)} |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for cell in cells:
        if cell.solver in rows:
            value, best = cell.values[column], best_free(free, cell.nfe, column)
            text = report.spread(value, cell.deviations.get(column, 0.0))
            parts = [cell.solver, str(cell.nfe), text, "none", "", ""]
            if best is not None:
                parts[3] = f"{best.solver} {results.number(best.values[column])}"
                parts[4] = ratio(value / best.values[column])
            if free:
                parts[5] = ratio(value / converged(free).values[column])
            lines.append("| " + " | ".join(parts) + " |")
    return lines


def best_free(free: Sequence, nfe: int, column: str):
    """The cell with the smallest distance among training-free ones of some calls, or None."""
    same = [cell for cell in free if cell.nfe == nfe]
    return min(same, key=lambda cell: cell.values[column], default=None)


def converged(free: Sequence):
    """The training-free cell with the most calls: the teacher as it is."""
    return max(free, key=lambda cell: cell.nfe)


def _most(free: Sequence) -> str:
    return f"{converged(free).solver} at {converged(free).nfe} NFE" if free else "the teacher"


NOTE = (
    "Wall time of training, compilation included and the making of recordings not; images drawn, of data-free "
    "methods the trajectories begun; network evaluations on one image, a forward pass counted as 1 and a "
    "gradient as 3; feature networks in a loss are not counted. A student's figures are with all that it "
    "builds on but the teacher."
)
