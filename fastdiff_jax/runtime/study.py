"""A study: one trained teacher under many samplers and call counts, and its students, into one report.

A row is written when it is measured, so a study that was stopped goes on where it was; a row whose settings,
weights or data have changed is measured again.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fastdiff_jax.metrics import panels
from fastdiff_jax.runtime import (
    checkpoint,
    commands,
    evaluate,
    experiment,
    files,
    generate,
    levels,
    progress,
    report,
    results,
    search,
    settings,
    students,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import Job, assemble
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.solvers import sampling
from fastdiff_jax.types import Frozen, Params, Sampler


class Cell(NamedTuple):
    """A solver at one cost."""

    solver: str  # by its name in the study
    nfe: int
    values: Mapping[str, float]  # the panel's columns, means over the sampling seeds
    distance: float  # mean over images of the RMS difference from the reference, the first seed's noise given
    ms_per_image: float
    compile_seconds: float  # zero if the program of an earlier row served
    deviations: Mapping[str, float] = {}  # of the values over the seeds, population form; {} for one seed


class Sampled(NamedTuple):
    """What the samples of one sampler are like."""

    values: Mapping[str, float]  # as a `Cell`'s, and the next three
    deviations: Mapping[str, float]
    ms_per_image: float
    compile_seconds: float
    first: np.ndarray  # (num,...) images of the first seed, in model units


class Bench(NamedTuple):
    """What all rows share."""

    job: Job  # the teacher's
    weights: Params  # of the network that is sampled, the teacher's or a student's
    frozen: Frozen  # what else its samplers read
    panel: panels.Panel
    labels: Mapping[int, np.ndarray]  # (num,) by sampling seed
    mesh: Mesh
    batch_size: int
    identity: Mapping[str, Any]  # of weights, data and measures: a row holds for these only
    programs: dict  # compiled samplers by structure


def run(study: Experiment) -> bool:
    """Measures what is missing and writes report.md, report.png and card.json; of students also students.png.

    Teacher and students are trained first if they have not been. Returns: False if SIGTERM stopped that.
    Raises: ValueError for unknown solvers, costs that a solver cannot have, students that cannot be compared
      or that other settings have made, and a workdir in use.
    """
    experiment.check_writable(study.workdir)
    basis = experiment.prerequisite(study.config.teacher, study.workdir)
    settings.check(basis.config)
    check(study, basis)
    if not (commands.finished(basis) or commands.fit(basis)):
        return False
    if not students.trained(students.of(study)):
        return False
    study.workdir.mkdir(parents=True, exist_ok=True)
    lock = files.Lock(study.workdir)
    try:
        measure(study, bench(study, basis), basis)
    finally:
        lock.release()
    return True


def check(study: Experiment, basis: Experiment) -> None:
    """Raises ValueError for what could not be trained and measured; reads no image."""
    if jax.process_count() > 1:
        raise ValueError(f"a study runs in one process, not {jax.process_count()}; start it on one host.")
    job, config = commands.teacher(basis, outline=True), study.config.evaluation
    requests(study.config, job)
    reference_sampler(study.config, job)
    panels.check(config.panel.to_dict(), job.data)
    mesh = meshes.make(study.config.mesh)
    meshes.check_divides(config.batch_size, mesh, "evaluation.batch_size")
    known = commands.Outlines.none()
    if not commands.finished(basis):
        commands.check(basis, known)
    students.check(students.of(study), basis, mesh, known)


def requests(config, job: Job, found: Mapping = {}) -> dict[tuple[str, int], Sampler]:
    """The sampler of every row, by solver and calls, in the table's order.

    Args:
      found: levels (N+1,) of rows that search for theirs, by solver and calls; for those that are not there
        others stand in, which tell whether the solver takes so many.
    Raises: ValueError as `named.sampler` and `levels.request_of`.
    """
    rows, model = {}, job.parts.models["student"]
    for solver, request in config.study.solvers.to_dict().items():
        counts = request.pop("nfe", config.study.nfe)
        if levels.request_of(request, counts) is not None:
            request["schedule"] = search.base_schedule(job.config, model.precond)
        for nfe in counts:
            row = rows[solver, nfe] = {**request, "nfe": nfe}
            if (solver, nfe) in found:
                row["schedule"] = dict(name="levels", sigmas=found[solver, nfe])
    # One call: samplers of one call share their programs.
    return sampling.samplers(rows, model, job.parts.schedule, job.data.shape)


def searched(study: Experiment, bench: Bench, basis: Experiment) -> dict[tuple[str, int], list[float]]:
    """Levels (N+1,) of the rows that search for theirs, by solver and calls."""
    given, counts, all_found = study.config.study.solvers.to_dict(), study.config.study.nfe, {}
    for solver, request in given.items():
        asked = levels.request_of(request, request.get("nfe", counts))
        if asked is not None:
            path = study.workdir / "levels" / f"{solver.replace(' ', '_')}.json"
            found = levels.found(path, basis, asked, {"weights": bench.identity["weights"]})
            all_found |= {(solver, nfe): sigmas for nfe, sigmas in found.items()}
    return all_found


def bench(study: Experiment, basis: Experiment) -> Bench:
    """Loads the teacher, the data and the measures."""
    config, job, mesh = study.config.evaluation, assemble(basis.config), meshes.make(study.config.mesh)
    panel, seeds = panels.build(config.panel.to_dict(), job.data), list(config.seeds)
    product = checkpoint.product(basis.workdir)
    identity = dict(
        weights=product.fingerprint, data=job.data.fingerprint, nets=panel.nets, num=config.num, seeds=seeds,
        batch_size=config.batch_size, schedule=basis.config.schedule.to_dict(),
        reference=study.config.study.reference.to_dict(),
    )  # fmt: skip
    labels = {seed: generate.labels_of(job.data, seed, config.num) for seed in seeds}
    weights = commands.product(job, basis, mesh)
    return Bench(job, weights, {}, panel, labels, mesh, config.batch_size, identity, {})


def measure(study: Experiment, bench: Bench, basis: Experiment) -> None:
    """Rows that are not there yet, then the report."""
    rows = requests(study.config, bench.job, searched(study, bench, basis))
    asked = study.config.study.solvers.to_dict()
    pupils = students.of(study)
    taught = students.samplers(pupils)
    with progress.count(len(rows) + len(taught) + 1, "row") as bar:
        bar.set_description("reference")
        reference = reference_samples(study, bench)
        bar.update()
        cells = []
        for (solver, nfe), sampler in rows.items():
            bar.set_description(f"{solver} {nfe}")
            identity = digest({**bench.identity, "request": asked[solver], "nfe": nfe})
            measured = partial(one, solver, sampler, reference, bench)
            cells.append(kept(study, f"{solver}_{nfe}", identity, measured))
            bar.update()
        for (row, nfe), (student, name) in taught.items():
            bar.set_description(f"{row} {nfe}")
            product = checkpoint.product(student.run.workdir)
            said = {"student": product.fingerprint, "config": product.config, "sampler": name}
            measured = partial(graduate, student, name, reference, bench)
            cells.append(kept(study, f"{row}_{nfe}", digest({**bench.identity, **said}), measured))
            bar.update()
    write(study, bench, cells, students.costs(pupils, basis) if pupils else (), basis)


def row_file(study: Experiment, name: str) -> Path:
    """Where a row is kept."""
    return study.workdir / "rows" / f"{name.replace(' ', '_')}.json"


def kept(study: Experiment, name: str, identity: str, measured: Callable, kind: type = Cell) -> Any:
    """The row's file if it is of this very measurement; else what `measured` finds, which is written there."""
    path = row_file(study, name)
    cell = stored(path, identity, kind)
    if cell is None:
        cell = measured()
        files.write_json(path, {"identity": identity, "cell": cell._asdict()})
    return cell


def graduate(student: students.Student, name: str, reference: np.ndarray, bench: Bench) -> Cell:
    """`one` of a student's own sampler."""
    job, weights, frozen = students.loaded(student, bench.mesh)
    own = bench._replace(weights=weights, frozen=frozen, programs={})
    return one(student.row, job.method.samplers[name], reference, own)


def one(solver: str, sampler: Sampler, reference: np.ndarray, bench: Bench) -> Cell:
    """Samples one row's images with every seed and measures each set."""
    found = sampled(sampler, bench)
    difference = (found.first - reference).reshape(len(reference), -1)
    distance = float(np.sqrt(np.mean(difference**2, axis=1)).mean())
    return Cell(
        solver, sampler.nfe, found.values, distance, found.ms_per_image, found.compile_seconds, found.deviations
    )


def sampled(sampler: Sampler, bench: Bench) -> Sampled:
    """Samples images with every seed and measures each set."""
    sets, seconds, compiled, first = [], [], [], None
    for seed, labels in bench.labels.items():
        values, took, waited = samples(sampler, bench, seed)
        first = values if first is None else first
        sets.append(bench.panel.measure(bench.job.data.encode(values), labels))
        seconds.append(took)
        compiled.append(waited)
    over = evaluate.spread(sets)
    means = {column: float(mean) for column, (mean, _) in over.items()}
    spreads = {column: float(std) for column, (_, std) in over.items()} if sets[1:] else {}
    return Sampled(means, spreads, 1e3 * float(np.mean(seconds)), sum(compiled), first)


def samples(sampler: Sampler, bench: Bench, seed: int) -> tuple[np.ndarray, float, float]:
    """Images in model units (num,...), seconds an image, and seconds of compiling."""
    maker = generate.generator(
        sampler, bench.weights, bench.frozen, bench.job.classes, bench.batch_size, bench.mesh, bench.programs
    )
    values, seconds = generate.images(maker, seed, bench.labels[seed], np.asarray)
    return values, seconds, maker.compile_seconds


def reference_sampler(config, job: Job) -> Sampler:
    """The sampler that distances are taken from. Raises: ValueError as `named.sampler`."""
    parts, request = job.parts, {"reference": config.study.reference.to_dict()}
    return sampling.samplers(request, parts.models["student"], parts.schedule, job.data.shape)["reference"]


def reference_samples(study: Experiment, bench: Bench) -> np.ndarray:
    """The teacher's samples at a cost where more calls change nothing, from the same noise."""
    path, identity = study.workdir / "reference.npz", digest(bench.identity)
    if path.exists():
        with np.load(path, allow_pickle=False) as archive:
            if str(archive["identity"]) == identity:
                return archive["values"]
    values, *_ = samples(reference_sampler(study.config, bench.job), bench, next(iter(bench.labels)))
    buffer = io.BytesIO()
    np.savez(buffer, identity=identity, values=values)
    files.write(path, buffer.getvalue())
    return values


def stored(path: Path, identity: str, kind: type) -> Any:
    """The row in a file, if it is of this very measurement."""
    found = files.read_json(path)
    return kind(**found["cell"]) if found and found["identity"] == identity else None


def digest(value: Any) -> str:
    """sha256 of a value's JSON text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write(
    study: Experiment, bench: Bench, cells: Sequence[Cell], costs: Sequence[students.Cost], basis: Experiment
) -> None:
    """The report of all rows."""
    from fastdiff_jax.runtime import charts  # matplotlib: a second of imports

    headline = bench.panel.headline
    floor = evaluate.spread([bench.panel.floor(bench.identity["num"], seed) for seed in range(3)])
    about = {
        "title": study.name,
        "teacher": {"config": basis.name, **bench.identity},
        "floor": {column: dict(mean=m, std=s) for column, (m, s) in floor.items()},
        "results": [cell._asdict() for cell in cells],
        "versions": report.versions(),
        "device": report.device(),
    }
    shown, taught = {column: floor[column][0] for column in headline}, [cost.row for cost in costs[1:]]
    text = "\n".join(markdown(study, bench, cells, costs, basis, floor)) + "\n"
    picture = charts.frontier(study.name, cells, shown, taught)
    if costs:
        about["costs"] = [cost._asdict() for cost in costs]
        files.write(study.workdir / "students.png", charts.students(study.name, cells, costs, shown))
        progress.say("\n".join(["", *students.table(costs), ""]))
    files.write_json(study.workdir / "card.json", about)
    files.write(study.workdir / "report.png", picture)
    files.write(study.workdir / "report.md", text.encode())
    progress.say(f"report: {study.workdir / 'report.md'}")


def markdown(
    study: Experiment,
    bench: Bench,
    cells: Sequence[Cell],
    costs: Sequence[students.Cost],
    basis: Experiment,
    floor: Mapping,
) -> list[str]:
    """The lines of report.md: a table a measure, solvers down and calls across."""
    request, hardware = study.config.study.reference, report.device()
    seeds = ", ".join(map(str, bench.labels))
    several = "mean ± standard deviation over sampling seeds" if len(bench.labels) > 1 else "sampling seed"
    said = f"{bench.identity['num']} samples a row, {several} {seeds}; teacher {basis.name}"
    lines = [f"# {study.name}", "", f"{said}. Bold: the best of its column.", ""]
    for column in bench.panel.headline:
        mean, deviation = floor[column]
        note = f"{bench.panel.floor_name}: {report.spread(mean, deviation)}"
        of = {(cell.solver, cell.nfe): cell.values[column] for cell in cells}
        deviations = {(cell.solver, cell.nfe): cell.deviations.get(column, 0.0) for cell in cells}
        table = grid(of, deviations=deviations)
        lines += [f"## {results.heading(column)}", "", f"{note}.", "", *table, ""]
    of = {(cell.solver, cell.nfe): cell.distance for cell in cells}
    note = f"RMS difference per image from {request.name} at {request.nfe} NFE, the same noise given."
    lines += ["## Distance to the converged samples", "", note, "", *grid(of), ""]
    if costs:
        taught = list(dict.fromkeys(cost.row for cost in costs[1:]))
        for column in bench.panel.headline:
            title = f"## Students against training-free samplers: {results.heading(column)}"
            lines += [title, "", *students.against(cells, taught, column), ""]
        lines += ["## What training cost", "", students.NOTE, "", *students.table(costs), ""]
        lines += ["![Students by their distances and their cost](students.png)", ""]
    of = {(cell.solver, cell.nfe): cell.ms_per_image for cell in cells}
    lines += ["## ms per image", "", *grid(of), ""]
    of = {(cell.solver, cell.nfe): cell.compile_seconds for cell in cells}
    note = "Zero: the program of an earlier row served, with other numbers."
    lines += ["## Seconds of compiling", "", note, "", *grid(of, best=False), ""]
    lines += [
        "![Distances by network calls](report.png)",
        "",
        f"{hardware['count']} x {hardware['kind']} ({hardware['platform']}); "
        + ", ".join(f"{name} {version}" for name, version in report.versions().items()),
    ]
    return lines


def grid(
    values: Mapping[tuple[str, int], float], best: bool = True,
    deviations: Mapping[tuple[str, int], float] = {}, down: str = "solver",
) -> list[str]:  # fmt: skip
    """A Markdown table of numbers by solver, or what else goes down, and calls; one not asked for is empty."""
    solvers, counts = dict.fromkeys(s for s, _ in values), sorted({nfe for _, nfe in values})
    least = {nfe: min(value for (_, n), value in values.items() if n == nfe) for nfe in counts}
    lines = [
        f"| {down} \\ NFE | " + " | ".join(map(str, counts)) + " |",
        "| --- |" + " ---: |" * len(counts),
    ]
    for solver in solvers:
        row = []
        for nfe in counts:
            value = values.get((solver, nfe))
            text = "" if value is None else report.spread(value, deviations.get((solver, nfe), 0.0))
            row.append(f"**{text}**" if best and value is not None and value == least[nfe] else text)
        lines.append(f"| {solver} | " + " | ".join(row) + " |")
    return lines
