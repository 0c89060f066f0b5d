"""A study of teachers: several experiments with several training seeds, at the same budget, into one report.

Each run is measured at parts of its training, the averaged weights of its milestone checkpoints, with one
sampler, and at its end with all samplers. As in `study`, what is measured is kept.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from fastdiff_jax import registry
from fastdiff_jax.metrics import panels
from fastdiff_jax.runtime import (
    checkpoint,
    commands,
    compile,
    curves,
    evaluate,
    experiment,
    files,
    generate,
    progress,
    report,
    sessions,
    settings,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import Job, assemble
from fastdiff_jax.runtime.curves import Point
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.runtime.study import Bench, digest, kept, row_file, sampled
from fastdiff_jax.solvers import sampling
from fastdiff_jax.types import Params, Sampler


class Teacher(NamedTuple):
    """One run of a study."""

    row: str
    seed: int  # of training
    run: Experiment


def of(study: Experiment) -> list[Teacher]:
    """A study's runs in the order of training: the first seed of all rows, the second, ...

    The config's own seed is no change, so that run is the experiment as others build on it.
    Raises: ValueError for configs that cannot be.
    """
    found = []
    for row, given in study.config.study.teachers.items():
        teacher = registry.options(settings.Teacher, given.to_dict(), f"teacher {row}")
        own = experiment.changed(teacher.config, teacher.changes or {}, study.workdir).config.seed
        for turn, seed in enumerate(teacher.seeds):
            changes = (teacher.changes or {}) | ({} if seed == own else {"seed": seed})
            run = experiment.changed(teacher.config, changes, study.workdir)
            found.append((turn, Teacher(row, seed, run)))
    return [teacher for _, teacher in sorted(found, key=lambda pair: pair[0])]


def run(study: Experiment) -> bool:
    """Trains and measures what is missing and writes report.md, report.png and card.json.

    Returns: False if SIGTERM stopped it in training.
    Raises: ValueError for rows that cannot be compared, solvers and costs that they cannot have, runs that
      other settings have made or whose checkpoints are gone, and a workdir in use.
    """
    experiment.check_writable(study.workdir)
    teachers = of(study)
    check(study, teachers)
    if not all(commands.finished(one.run) or commands.fit(one.run) for one in teachers):
        return False
    study.workdir.mkdir(parents=True, exist_ok=True)
    lock = files.Lock(study.workdir)
    try:
        base = bench(study, teachers)
        write(study, base, teachers, measure(study, base, teachers))
    finally:
        lock.release()
    return True


def check(study: Experiment, teachers: Sequence[Teacher]) -> None:
    """Raises ValueError for what could not be trained, measured and compared; reads no image."""
    if jax.process_count() > 1:
        raise ValueError(f"a study runs in one process, not {jax.process_count()}; start it on one host.")
    mesh, config = meshes.make(study.config.mesh), study.config.evaluation
    meshes.check_divides(config.batch_size, mesh, "evaluation.batch_size")
    first, shares, known = teachers[0], {}, commands.Outlines.none()
    for one in teachers:
        row, given = one.row, one.run.config
        settings.check(given)
        if given.data.to_dict() != first.run.config.data.to_dict():
            raise ValueError(
                f"teacher {row} is trained for the data {given.data.to_dict()}, {first.row} for "
                f"{first.run.config.data.to_dict()}; compare on the same."
            )
        job = commands.teacher(one.run, outline=True)
        requests(study.config, job)
        shares[row] = steps(one.run)
        commands.check(one.run, known)
        if commands.finished(one.run):
            commands.product(job, one.run, mesh)
            check_points(study, one)
    panels.check(config.panel.to_dict(), job.data)
    budgets = {one.row: images(one.run, shares[one.row][-1]) for one in teachers}
    for row, given in study.config.study.teachers.items():
        other = given.get("baseline")
        if other and budgets[other] != budgets[row]:
            raise ValueError(
                f"teacher {row} sees {budgets[row]:,} images, its baseline {other} {budgets[other]:,}; compare "
                "at the same budget."
            )


def check_points(study: Experiment, teacher: Teacher) -> None:
    """Raises ValueError if a finished run has lost a checkpoint that has not been measured yet."""
    curve, workdir = study.config.study.curve, teacher.run.workdir
    for step in steps(teacher.run)[:-1]:
        name = name_of(teacher, curve.solver, curve.nfe, images(teacher.run, step))
        if not ((workdir / "checkpoints" / str(step)).is_dir() or row_file(study, name).exists()):
            raise ValueError(
                f"{workdir} has no checkpoint of step {step}, which the curve of teacher {teacher.row} needs; "
                "delete the directory, and the study trains it again."
            )


def steps(run: Experiment) -> list[int]:
    """The steps that a run is measured at: its milestones and its end.

    Raises: ValueError if it keeps no milestones, or does not save at them.
    """
    train = run.config.train
    if not train.milestones or train.milestones % train.save_every:
        raise ValueError(
            f"the curve of {run.name} needs train.milestones, a multiple of train.save_every; got "
            f"{train.milestones} and {train.save_every}."
        )
    return [*range(train.milestones, train.steps, train.milestones), train.steps]


def images(run: Experiment, step: int) -> int:
    """Images that a run has seen after some steps."""
    return step * run.config.train.batch_size


def requests(config, job: Job) -> dict[tuple[str, int], Sampler]:
    """The samplers of a teacher's last weights, by solver and calls. Raises: ValueError as `named.sampler`."""
    rows = {}
    for solver, request in config.study.solvers.to_dict().items():
        rows |= {(solver, nfe): {**request, "nfe": nfe} for nfe in request["nfe"]}
    # One call, as in `study.requests`.
    return sampling.samplers(rows, job.parts.models["student"], job.parts.schedule, job.data.shape)


def bench(study: Experiment, teachers: Sequence[Teacher]) -> Bench:
    """Data and measures; the weights are those of no run yet."""
    config, job = study.config.evaluation, assemble(teachers[0].run.config)
    panel = panels.build(config.panel.to_dict(), job.data)
    identity = dict(
        data=job.data.fingerprint, nets=panel.nets, num=config.num, seeds=list(config.seeds),
        batch_size=config.batch_size,
    )  # fmt: skip
    labels = {seed: generate.labels_of(job.data, seed, config.num) for seed in config.seeds}
    mesh = meshes.make(study.config.mesh)
    return Bench(job, {}, {}, panel, labels, mesh, config.batch_size, identity, {})


def measure(study: Experiment, base: Bench, teachers: Sequence[Teacher]) -> list[Point]:
    """All points, row by row; those that are not there yet are sampled."""
    curve, asked = study.config.study.curve, study.config.study.solvers.to_dict()
    each = sum(len(request["nfe"]) for request in asked.values())
    points, rows = [], list(study.config.study.teachers)
    total = sum(len(steps(one.run)) - 1 + each for one in teachers)
    with progress.count(total, "row") as bar:
        for row in rows:
            runs = [one for one in teachers if one.row == row]
            job = commands.teacher(runs[0].run, outline=True)
            job = job._replace(data=base.job.data)
            # Programs are those of one row: its runs differ in their weights only.
            samplers, bench = requests(study.config, job), base._replace(job=job, programs={})
            for one in runs:
                product = checkpoint.product(one.run.workdir)
                for step in steps(one.run):
                    last = step == one.run.config.train.steps
                    for solver, nfe in samplers if last else [(curve.solver, curve.nfe)]:
                        seen = images(one.run, step)
                        bar.set_description(f"{row}, seed {one.seed}")
                        identity = dict(
                            run=product.fingerprint, config=product.config, step=step, request=asked[solver],
                            nfe=nfe, **bench.identity,
                        )  # fmt: skip
                        found = partial(measured, one, step, solver, samplers[solver, nfe], bench)
                        name = name_of(one, solver, nfe, seen)
                        points.append(kept(study, name, digest(identity), found, Point))
                        bar.update()
    return points


def name_of(teacher: Teacher, solver: str, nfe: int, seen: int) -> str:
    """What a point's file is called."""
    return f"{teacher.row}_seed_{teacher.seed}_{solver}_{nfe}_at_{seen}"


def measured(teacher: Teacher, step: int, solver: str, sampler: Sampler, bench: Bench) -> Point:
    """Samples one run's weights at a step and measures them."""
    weights = weights_at(teacher.run, bench.job, step, bench.mesh)
    found = sampled(sampler, bench._replace(weights=weights))
    return Point(
        teacher.row, teacher.seed, images(teacher.run, step), solver, sampler.nfe, found.values,
        found.ms_per_image, found.compile_seconds,
    )  # fmt: skip


def weights_at(run: Experiment, job: Job, step: int, mesh: Mesh) -> Params:
    """What a finished run's product would be, had it ended at a step that it keeps a checkpoint of.

    Raises: ValueError if the checkpoint is gone or damaged.
    """
    if step == run.config.train.steps:
        return commands.product(job, run, mesh)
    shapes = commands.state_shapes(job)
    template = compile.with_layout(shapes, meshes.shardings(shapes, meshes.DEFAULT, mesh))
    with checkpoint.Store(run.workdir, run.config.to_dict()) as store:
        return job.method.weights(store.restore(template, step)[0])


def record(teacher: Teacher) -> dict[str, Any]:
    """What card.json says of a run: what made its weights, and what they cost."""
    config, workdir = teacher.run.config, teacher.run.workdir
    return dict(
        row=teacher.row,
        seed=teacher.seed,
        name=teacher.run.name,
        precond=config.models.student.precond.to_dict(),
        objective=config.objective.to_dict(),
        steps=config.train.steps,
        images=images(teacher.run, config.train.steps),
        seconds=sessions.seconds(workdir),
        weights=checkpoint.product(workdir).fingerprint,
    )


def write(study: Experiment, bench: Bench, teachers: Sequence[Teacher], points: Sequence[Point]) -> None:
    """The report of all points."""
    from fastdiff_jax.runtime import charts  # matplotlib: a second of imports

    floor = evaluate.spread([bench.panel.floor(bench.identity["num"], seed) for seed in range(3)])
    floor = {column: floor[column] for column in bench.panel.headline}
    given = study.config.study
    baselines = {row: one.get("baseline") or "" for row, one in given.teachers.items()}
    curve = given.curve.solver, given.curve.nfe
    found = curves.Study(points, baselines, tuple(bench.panel.headline), curve)
    runs = [record(one) for one in teachers]
    made = 1e-3 * bench.identity["num"] * len(bench.labels) * sum(point.ms_per_image for point in points)
    seconds = dict(
        training=sum(one["seconds"] for one in runs), sampling=made,
        compiling_samplers=sum(point.compile_seconds for point in points),
    )  # fmt: skip
    about = {
        "title": study.name,
        "evaluation": bench.identity,
        "floor": {column: dict(mean=m, std=s) for column, (m, s) in floor.items()},
        "runs": runs,
        "seconds": seconds,
        "curve": given.curve.to_dict(),
        "solvers": given.solvers.to_dict(),
        "comparisons": curves.card(found),
        "results": [point._asdict() for point in points],
        "versions": report.versions(),
        "device": report.device(),
    }
    floors = {column: mean for column, (mean, _) in floor.items()}
    text = "\n".join(curves.markdown(study.name, found, bench, floor, runs, seconds)) + "\n"
    files.write_json(study.workdir / "card.json", about)
    files.write(study.workdir / "report.png", charts.teachers(study.name, found, floors))
    files.write(study.workdir / "report.md", text.encode())
    progress.say("\n".join(["", *curves.summary(found), "", f"report: {study.workdir / 'report.md'}"]))
