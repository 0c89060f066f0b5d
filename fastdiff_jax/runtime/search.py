"""The command line of launch/gits.py: levels for few steps of a trained teacher, and what they gain."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jax.tree_util import Partial
from ml_collections import ConfigDict

from fastdiff_jax import registry, rng
from fastdiff_jax.precond import denoiser
from fastdiff_jax.runtime import (
    checkpoint,
    command_line,
    commands,
    experiment,
    files,
    generate,
    progress,
    report,
    results,
    settings,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import Job
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.solvers import driver, gits, heun, named, schedules
from fastdiff_jax.types import Model, Params, Precond, Sampler, Schedule, Solver

FIRST = 2**30  # number of the first warm-up image: far from those that reports are made of
REFERENCE = 128  # Heun steps to what found and base levels are measured against


class Request(NamedTuple):
    """What to search for; the flags of the command."""

    steps: tuple[int, ...]
    solver: str = "ipndm_4"  # that will use the levels
    fine_solver: str = "ipndm_4"  # that makes the fine trajectories
    metric: str = "dev"
    coeff: float = 1.15
    fine: int = 21  # levels of the warm-up, both ends counted
    num: int = 256  # images of the warm-up; in batches of at most evaluation.batch_size
    seed: int | None = None  # None: the config's
    afs: bool = False  # for samplers with an analytical first step
    zero: bool | None = None  # whether levels end in zero; None: if the config says so


class Task(NamedTuple):
    """A checked request with what all its runs share."""

    job: Job
    mesh: Mesh
    weights: Params
    fine_solver: Solver
    student: Solver
    base: Schedule
    fine: np.ndarray  # levels of the warm-up
    seed: int
    batch: int  # images of a round, and of the comparison
    rounds: int
    labels: np.ndarray  # of all rounds and of the comparison, in this order
    sample: Callable  # (named.Prepared, *arguments of Sampler.generate) -> images
    programs: dict  # compiled ones by structure


class Found(NamedTuple):
    """Levels for one number of steps, and how far samplers end from the fine solution, see `distance`."""

    steps: int
    nfe: int
    indices: np.ndarray  # into the fine levels
    sigmas: np.ndarray
    distance: float
    base: float  # of the base schedule's levels at the same cost


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code, see `command_line`."""

    def command():
        values, run = command_line.asked(arguments, define)
        asked = {field: getattr(values, field) for field in Request._fields}
        request = Request(**asked | {"steps": counts(values.steps)})
        work(run, request)
        return 0

    return command_line.guarded(command)


def define(values: flags.FlagValues) -> None:
    """Defines the flags of launch/gits.py."""
    default, given = Request(()), dict(flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of the teacher; runs/<config name> by default.", **given)
    flags.DEFINE_list("steps", "3,4,5,6,7,8,9,10", "Numbers of steps to search levels for.", **given)
    flags.DEFINE_string("solver", default.solver, "Solver that will use the levels.", **given)
    flags.DEFINE_string("fine_solver", default.fine_solver, "Solver of the warm-up.", **given)
    flags.DEFINE_string("metric", default.metric, f"Cost of a jump: {', '.join(gits.METRICS)}.", **given)
    flags.DEFINE_float("coeff", default.coeff, "Weight of a jump relative to the one before it.", **given)
    flags.DEFINE_integer("fine", default.fine, "Levels of the warm-up.", lower_bound=2, **given)
    flags.DEFINE_integer("num", default.num, "Images of the warm-up.", lower_bound=1, **given)
    flags.DEFINE_integer("seed", None, "Seed of the images; the config's by default.",
                         lower_bound=0, upper_bound=settings.MOST, **given)  # fmt: skip
    flags.DEFINE_bool("afs", default.afs, "Levels for an analytical first step.", **given)
    flags.DEFINE_bool("zero", None, "Levels that end in zero; if the config says so by default.", **given)


def counts(texts: list[str]) -> tuple[int, ...]:
    """The numbers of --steps, ascending, each once. Raises: ValueError for what is none."""
    if not texts or not all(text.strip().isdecimal() for text in texts):
        raise ValueError(f"--steps takes whole numbers such as 3,4,5; got {','.join(texts)!r}.")
    return tuple(sorted({int(text) for text in texts}))


def work(run: Experiment, request: Request) -> list[Found]:
    """Searches, compares, prints, and writes `gits.json` into the teacher's workdir.

    Raises: ValueError for what cannot be searched, and if the teacher is not trained.
    """
    task = prepared(run, request)
    matrix = warm_up(task, request.metric)
    paths = {steps: indices_of(task, matrix, steps, request) for steps in request.steps}
    found = compared(task, paths, request.afs)
    progress.say("\n".join(["", *table(found), "", *lines(found, request)]))
    if jax.process_index() == 0:
        files.write_json(run.workdir / "gits.json", document(run, request, task, found))
        progress.say(f"\nlevels: {run.workdir / 'gits.json'}")
    return found


def levels(run: Experiment, request: Request) -> dict[int, np.ndarray]:
    """The levels of a search by number of steps, compared with nothing. Raises: ValueError as `work`."""
    task = prepared(run, request)
    matrix = warm_up(task, request.metric)
    return {steps: task.fine[indices_of(task, matrix, steps, request)] for steps in request.steps}


def check(request: Request) -> None:
    """Raises ValueError for a metric, a weight or numbers of steps that no search can have."""
    if request.metric not in gits.METRICS:
        raise ValueError(f"no metric {request.metric!r} of a jump; known: {', '.join(gits.METRICS)}.")
    gits.check_coeff(request.coeff)
    for steps in request.steps:
        gits.check_steps(steps, request.fine - 1)


def prepared(run: Experiment, request: Request) -> Task:
    """The task of a request; what can be refused is, before weights are read."""
    job = commands.teacher(run)
    check(request)
    experiment.check_writable(run.workdir)
    mesh = meshes.make(run.config.mesh)
    model = job.parts.models["student"]
    names = (request.fine_solver, request.solver)
    fine_solver, student = (solver_of(name, model.precond) for name in names)
    base = base_schedule(run.config, model.precond, request.zero)
    fine = driver.levels(base(request.fine - 1))
    schedules.check_range(fine, model.precond)
    gits.check_fine_solver(fine_solver, fine)
    most = run.config.evaluation.batch_size
    batch = min(most, request.num)
    meshes.check_divides(batch, mesh, "--num" if batch < most else "evaluation.batch_size")
    rounds = gits.rounds(request.num, batch)
    seed = run.config.seed if request.seed is None else request.seed
    return Task(
        job, mesh, commands.product(job, run, mesh), fine_solver, student, base, fine, seed, batch, rounds,
        labels=generate.labels_of(job.data, seed, (rounds + 1) * batch),
        sample=partial(_sample, model, job.data.shape),
        programs={},
    )  # fmt: skip


def base_schedule(config: ConfigDict, precond: Precond, zero: bool | None = None) -> Schedule:
    """The config's schedule, within the model's range and on its trained levels.

    One that may end in zero does so only if it is said, here or in the config: with few calls, a step from the
    lowest level onto zero would waste one.

    Raises: ValueError if there is none, or `zero` is said of one without that option.
    """
    if config.get("schedule") is None:
        raise ValueError("the config has no schedule to search levels in; give it the section schedule.")
    asked = config.schedule.to_dict()
    kind = schedules.SCHEDULES.get(asked.get("name"))
    if zero is not None:
        asked["zero"] = zero
    elif kind is not None and "zero" in inspect.signature(kind).parameters:
        asked.setdefault("zero", False)
    return schedules.rounded(schedules.build(asked, precond), precond)


def solver_of(name: str, precond: Precond) -> Solver:
    """A solver by name, for any levels. Raises: ValueError if it is unknown, or plans its steps by cost."""
    factories = registry.entries("solvers", "SOLVERS")
    if name not in factories:
        raise ValueError(f"no solver {name!r}; known: {', '.join(sorted(factories))}.")
    taken = inspect.signature(factories[name]).parameters
    options = {"rounding": precond.round} if "rounding" in taken else {}
    solver = None if "nfe" in taken else factories[name](**options)
    if solver is None or solver.steps is not None:
        raise ValueError(
            f"{name} is made for one number of steps or calls, so levels cannot be searched for it; use a "
            "solver of any, such as ipndm_4."
        )
    return solver


def _sample(model: Model, shape, prepared: named.Prepared, params, frozen, keys, cond):
    del frozen
    denoise, latents = denoiser(model, params, cond), rng.normal_per_image(keys, shape)
    return named.generate(denoise, prepared, latents, noise=driver.per_image(keys, shape))


def batch_of(task: Task, generated: Partial, nfe: int, number: int) -> np.ndarray:
    """What `generated` makes of the images of round `number`; those of the comparison come after the last."""
    maker = generate.generator(
        Sampler(nfe, generated), task.weights, {}, task.job.classes, task.batch, task.mesh, task.programs
    )
    images = number * task.batch + np.arange(task.batch)
    return maker.batch(task.seed, FIRST + images, task.labels[images])


def images(task: Task, solver: Solver, sigmas: np.ndarray, number: int, afs: bool = False) -> np.ndarray:
    """A solver's samples (B,...) on given levels from the noise of round `number`."""
    sampler = named.Named(solver, sigmas, named.Options(afs=afs))
    nfe = driver.evaluations(solver, sigmas, afs)
    return batch_of(task, Partial(task.sample, named.prepare(sampler)), nfe, number)


def warm_up(task: Task, metric: str) -> np.ndarray:
    """(N+1,N+1) costs of jumps along the teacher's fine trajectories, averaged over the rounds."""
    model, shape = task.job.parts.models["student"], task.job.data.shape

    def jumps(steps: driver.Steps, params, frozen, keys, cond):
        del frozen
        levels = jnp.append(steps.sigma, steps.sigma_next[-1])
        x = levels[0] * rng.normal_per_image(keys, shape)
        trace = driver.run(denoiser(model, params, cond), x, steps, trace=True)
        return gits.costs(trace, levels, metric)

    generated, nfe = Partial(jumps, driver.prepare(task.fine_solver, task.fine)), len(task.fine) - 1
    total = 0.0
    with progress.count(task.rounds * task.batch, "img") as bar:
        bar.set_description("warm-up")
        for number in range(task.rounds):
            total = total + batch_of(task, generated, nfe, number).astype(np.float64)
            bar.update(task.batch)
    return total / task.rounds


def indices_of(task: Task, matrix: np.ndarray, steps: int, request: Request) -> np.ndarray:
    """The path of `steps` steps; for an analytical first step with one level more, chosen on the last round."""
    indices, last = gits.path(matrix, steps, request.coeff), task.rounds - 1
    if not request.afs:
        return indices
    final = images(task, task.fine_solver, task.fine, last)
    return gits.with_first(
        indices,
        lambda candidate: gits.mean_distance(
            images(task, task.student, task.fine[candidate], last, afs=True), final
        ),
    )


def compared(task: Task, paths: dict[int, np.ndarray], afs: bool) -> list[Found]:
    """Found against base levels, on images that the search has not seen."""
    found = []
    with progress.count(2 * len(paths) + 1, "batch") as bar:
        bar.set_description("comparison")
        # Rounding to trained levels may merge some of so many; equal ones do no harm there.
        exact = images(task, heun.heun(repeats=True), task.base(REFERENCE), task.rounds)
        bar.update()
        for steps, indices in paths.items():
            pair = []
            for sigmas in (task.fine[indices], task.base(len(indices) - 1)):
                pair.append(distance(images(task, task.student, sigmas, task.rounds, afs), exact))
                bar.update()
            nfe = driver.evaluations(task.student, task.fine[indices], afs)
            found.append(Found(steps, nfe, indices, task.fine[indices], *pair))
    return found


def distance(images: np.ndarray, exact: np.ndarray) -> float:
    """Mean over images (B,...) of the RMS difference of their values, in model units."""
    return float(np.sqrt(np.mean((images - exact).reshape(len(images), -1) ** 2, 1)).mean())


def table(found: list[Found]) -> list[str]:
    """A Markdown table of distances."""
    heads = ["| steps | NFE | base schedule | found levels | found / base |", "| ---: " * 5 + "|"]
    return heads + [
        f"| {one.steps} | {one.nfe} | {results.number(one.base)} | {results.number(one.distance)} "
        f"| {one.distance / one.base:.2f} |"
        for one in found
    ]


def lines(found: list[Found], request: Request) -> list[str]:
    """The samplers as a config asks for them."""
    afs = ", afs=True" if request.afs else ""
    return [
        f'"{request.solver} gits {one.nfe}": dict(name="{request.solver}", nfe={one.nfe}{afs}, '
        f'schedule=dict(name="levels", sigmas=({", ".join(f"{s:.8g}" for s in one.sigmas)})))'
        for one in found
    ]


def document(run: Experiment, request: Request, task: Task, found: list[Found]) -> dict[str, Any]:
    """The contents of gits.json."""
    product = checkpoint.product(run.workdir)
    return {
        "config": run.name,
        "data": {"name": task.job.data.name, "fingerprint": task.job.data.fingerprint},
        "teacher": {"fingerprint": product.fingerprint, "step": product.step},
        "request": request._asdict() | {"seed": task.seed},
        "warm_up": {"images": task.rounds * task.batch, "batch": task.batch, "sigmas": task.fine.tolist()},
        "reference": {"solver": "heun", "steps": REFERENCE},
        "schedule": run.config.schedule.to_dict(),
        "levels": [
            one._asdict() | {"indices": one.indices.tolist(), "sigmas": one.sigmas.tolist()} for one in found
        ],
        "versions": report.versions(),
        "device": report.device(),
    }
