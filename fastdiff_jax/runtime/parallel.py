"""The command line of launch/paradigms.py: what sampling many steps at once saves, and what it changes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh

from fastdiff_jax import rng
from fastdiff_jax.metrics import timing
from fastdiff_jax.precond import denoiser
from fastdiff_jax.runtime import command_line, commands, generate, progress, settings
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import Job
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.solvers import driver, named, picard


class Request(NamedTuple):
    """What to compare; the flags of the command."""

    solvers: tuple[str, ...] = ("euler", "dpmpp_2m", "ddpm")
    nfe: int = 100  # of each solver, step by step
    window: int = 20
    tolerance: float = 1e-3  # root mean square change of a state, see `picard.prepare`
    num: int = 32  # images, one batch
    seed: int | None = None  # None: the config's


class Result(NamedTuple):
    """A solver step by step and many steps at once, from the same noise."""

    solver: str
    depth: int  # network calls in a row; step by step they are nfe
    evaluations: int  # network calls per image in all
    largest: float  # difference of two values, in model units
    mean: float
    sequential: float  # ms per image
    parallel: float


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code, see `command_line`."""

    def command():
        values, run = command_line.asked(arguments, define)
        asked = {field: getattr(values, field) for field in Request._fields}
        request = Request(**asked | {"solvers": tuple(values.solvers)})
        work(run, request)
        return 0

    return command_line.guarded(command)


def define(values: flags.FlagValues) -> None:
    """Defines the flags of launch/paradigms.py."""
    default, given = Request(), dict(flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of the teacher; runs/<config name> by default.", **given)
    flags.DEFINE_list("solvers", list(default.solvers), "Solvers with one network call a step.", **given)
    flags.DEFINE_integer("nfe", default.nfe, "Network calls step by step.", lower_bound=1, **given)
    flags.DEFINE_integer("window", default.window, "Steps evaluated at once.", lower_bound=1, **given)
    flags.DEFINE_float("tolerance", default.tolerance, "Root mean square change that is none.", **given)
    flags.DEFINE_integer("num", default.num, "Images, one batch.", lower_bound=1, **given)
    flags.DEFINE_integer("seed", None, "Seed of the images; the config's by default.",
                         lower_bound=0, upper_bound=settings.MOST, **given)  # fmt: skip


def work(run: Experiment, request: Request) -> list[Result]:
    """Measures and prints.

    Raises: ValueError for solvers that cannot be iterated, a window that does not divide over the devices, and
      if the teacher is not trained.
    """
    if not request.solvers:
        raise ValueError("--solvers names at least one solver; got none.")
    mesh, job = meshes.make(run.config.mesh), commands.teacher(run)
    meshes.check_divides(min(request.window, request.nfe), mesh, "--window")
    pairs = {solver: pair(solver, job, request) for solver in request.solvers}
    weights, found = commands.product(job, run, mesh), []
    with progress.count(len(pairs), "solver") as bar:
        for solver, samplers in pairs.items():
            bar.set_description(solver)
            seed = run.config.seed if request.seed is None else request.seed
            found.append(compared(solver, samplers, job, weights, mesh, seed, request))
            bar.update()
    progress.say("\n".join(["", *table(found, run, request)]))
    return found


def pair(solver: str, job: Job, request: Request) -> tuple[named.Prepared, named.Prepared]:
    """The sampler step by step, and many steps at once. Raises: ValueError as `named.sampler`."""
    at_once = dict(window=request.window, tolerance=request.tolerance)
    common = dict(schedule=job.parts.schedule, precond=job.parts.models["student"].precond)
    made = (named.sampler(solver, request.nfe, **common, parallel=p) for p in (None, at_once))
    return tuple(map(named.prepare, made))


def compared(solver: str, samplers, job: Job, weights, mesh: Mesh, seed: int, request: Request) -> Result:
    """Both samplers' images from the noise of images 0..num-1 of a seed, and their times."""
    keys = rng.image_keys(rng.root(seed, "sample"), jnp.arange(request.num))
    labels = generate.labels_of(job.data, seed, request.num)
    cond = {"label": jax.nn.one_hot(labels, job.classes)} if job.classes else {}
    model, shape = job.parts.models["student"], job.data.shape

    def place(states):
        return jax.lax.with_sharding_constraint(states, meshes.rows(mesh))

    @jax.jit
    def sample(prepared, weights, keys, cond) -> picard.Picard:
        denoise, latents = denoiser(model, weights, cond), rng.normal_per_image(keys, shape)
        noise = driver.per_image(keys, shape)
        return named.run(denoise, prepared, latents, noise=noise, place=place)

    samplers, keys, cond = jax.device_put((samplers, keys, cond), meshes.whole(mesh))
    runs, speeds = [], []
    for prepared in samplers:
        inputs = prepared, weights, keys, cond
        runs.append(jax.device_get(sample(*inputs)))
        speeds.append(timing.per_image(sample, *inputs, images=request.num, repeats=1).best)
    difference = np.abs(runs[1].x - runs[0].x)
    cost = int(runs[1].passes), int(runs[1].evaluations)
    return Result(solver, *cost, float(difference.max()), float(difference.mean()), *speeds)


def table(found: list[Result], run: Experiment, request: Request) -> list[str]:
    """A Markdown table under a line that says what it is of."""
    rows = [
        f"| {one.solver} | {request.nfe} | {one.depth} | {one.evaluations} | {one.largest:.1e} "
        f"| {one.mean:.1e} | {one.sequential:.3g} | {one.parallel:.3g} |"
        for one in found
    ]
    return [
        f"{run.name}: {request.num} images step by step and {request.window} steps at once, tolerance "
        f"{request.tolerance:g}; differences in model units, times in ms per image on {jax.device_count()} "
        f"{jax.devices()[0].device_kind} device(s)",
        "",
        "| solver | steps | depth | evaluations | max difference | mean difference | sequential | parallel |",
        "| :--- " + "| ---: " * 7 + "|",
        *rows,
    ]
