"""Samplers by name and cost: a solver on the levels that make a given number of network calls."""

import bisect
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import guidance, registry
from fastdiff_jax.solvers import driver, picard, schedules
from fastdiff_jax.solvers.driver import Steps
from fastdiff_jax.types import Array, Denoiser, Noise, Precond, Schedule, Solver


class Options(NamedTuple):
    """What a sampler does besides its solver's steps."""

    denoise_to_zero: bool = False  # a last call: the x0 predicted at the last level is the image
    afs: bool = False  # analytical first step: the first call's x0 is guessed (guidance.gaussian_guess)
    threshold: bool = False  # dynamic thresholding of the steps' predictions, not of a last call
    parallel: picard.Settings | None = None  # many steps at once, by Picard iteration


class Named(NamedTuple):
    """A solver with the levels that make it cost what was asked."""

    solver: Solver
    sigmas: np.ndarray  # (N+1,) host float64
    options: Options


def sampler(
    name: str,
    nfe: int,
    *,
    schedule: Schedule | Mapping,
    precond: Precond | None = None,
    denoise_to_zero: bool = False,
    afs: bool = False,
    threshold: bool = False,
    parallel: Mapping | None = None,
    **options,
) -> Named:
    """The solver `name` with as many steps as cost exactly `nfe` network calls, the most if several do.

    Args:
      schedule: N -> (N+1,) levels, or the config of one.
      precond: the model's: a schedule config is cut to its range, levels are rounded to its trained ones.
      denoise_to_zero: end with x0 at the last level, at the cost of one call.
      afs: guess the first call's x0 instead of making the call.
      threshold: pull predictions into [-1, 1]; published pixel-space figures of DPM-Solver++ and UniPC do.
      parallel: {"window", "tolerance"}: take many steps at once, see `solvers.picard`. `nfe` is then what the
        solver costs step by step; `run` says what it was.
      options: of the solver. One that takes `nfe` or `rounding` is given the call count, the model's rounding.
    Raises: ValueError for an unknown solver or option, a cost that the solver cannot have, and levels
      outside the range that the model was trained at.
    """
    if not isinstance(nfe, Integral) or isinstance(nfe, bool) or nfe < 1:
        raise ValueError(f"{name}: nfe is a whole number of network calls, at least one; got {nfe!r}.")
    factories = registry.entries("solvers", "SOLVERS")
    if name not in factories:
        raise ValueError(f"no solver {name!r}; known: {', '.join(sorted(factories))}.")
    known = list(inspect.signature(factories[name]).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"solver {name} has no option {', '.join(map(repr, unknown))}; "
            f"known: {', '.join([*known, *Options._fields])}."
        )
    if not callable(schedule):
        schedule = schedules.build(schedule, precond)
    if precond is not None and "rounding" in known:
        options.setdefault("rounding", precond.round)
    if "nfe" in known:
        options["nfe"] = nfe - denoise_to_zero + afs
    solver = factories[name](**options)
    if afs and not solver.guessed:
        raise ValueError(f"{name} moves x before its first call, so afs cannot guess that; set afs=False.")

    def cost(steps):
        return driver.evaluations(solver, schedule(steps), afs) + denoise_to_zero

    only = solver.steps or getattr(schedule, "steps", None)  # a list of levels is for one number of steps
    # No more steps than calls, as a discrete model may have no more levels; AFS gives one step for nothing.
    steps = only or bisect.bisect_right(range(1, max(nfe, 1) + 1 + afs), nfe, key=cost)
    if not steps or cost(steps) != nfe:
        near = [cost(n) for n in ((steps,) if only else (steps, steps + 1)) if n > 0]
        raise ValueError(
            f"{name} cannot make exactly {nfe} network calls on this schedule; "
            f"use {' or '.join(map(str, near))}."
        )
    if precond is not None:  # only now: at step counts that were merely looked at, levels may merge
        schedules.check_range(schedule(steps), precond)
        schedule = schedules.rounded(schedule, precond)
    sigmas = driver.levels(schedule(steps), solver.repeats)
    if denoise_to_zero and sigmas[-1] == 0:
        raise ValueError("denoise_to_zero needs a schedule that ends above zero; set zero=False.")
    if parallel is not None:
        parallel = registry.options(picard.Settings, parallel, "parallel")
        picard.check(solver, sigmas, *parallel)
        if afs:
            raise ValueError("afs guesses a call in a row and parallel spares them; drop one of them.")
    return Named(solver, sigmas, Options(denoise_to_zero, afs, threshold, parallel))


@partial(jax.tree_util.register_dataclass, data_fields=("steps",), meta_fields=("options", "calls"))
@dataclasses.dataclass(frozen=True)
class Prepared:
    """A sampler's numbers as arrays and its structure as static fields: an argument of jitted functions.

    Samplers that differ in numbers only are then one executable.
    """

    steps: Steps | picard.Windows
    options: Options
    calls: int  # of the network, step by step


def prepare(named: Named, dtype=jnp.float32) -> Prepared:
    """`named` for states of `dtype`, see `driver.prepare`."""
    solver, sigmas, options = named
    calls = driver.evaluations(solver, sigmas, options.afs) + options.denoise_to_zero
    if options.parallel is None:
        return Prepared(driver.prepare(solver, sigmas, dtype), options, calls)
    settings = options.parallel._asdict() | {"scale": picard.unit_scale(sigmas)}
    return Prepared(picard.prepare(solver, sigmas, dtype, **settings), options, calls)


def generate(
    denoise: Denoiser, sampler: Named | Prepared, latents: Array, *, noise: Noise | None = None
) -> Array:
    """Images (B,...) from standard normal latents (B,...): scaled to the first level and carried down.

    Args:
      noise: as `driver.run`.
    """
    return run(denoise, sampler, latents, noise=noise).x


def run(
    denoise: Denoiser,
    sampler: Named | Prepared,
    latents: Array,
    *,
    noise: Noise | None = None,
    place: Callable[[Array], Array] | None = None,
) -> picard.Picard:
    """Images as `generate`'s, with the network calls in a row and in all that they took.

    Args:
      place: as `picard.run`; other samplers have no window to place.
    """
    if isinstance(sampler, Named):
        sampler = prepare(sampler, latents.dtype)
    options, parallel = sampler.options, isinstance(sampler.steps, picard.Windows)
    steps = sampler.steps.steps if parallel else sampler.steps
    first, last = (jnp.asarray(level, latents.dtype) for level in (steps.sigma[0], steps.sigma_next[-1]))
    x, stepped, known = first * latents, denoise, None
    if options.threshold:
        stepped = guidance.thresholded(denoise)
    if options.afs:
        known = guidance.gaussian_guess(x, first)
        known = guidance.dynamic_threshold(known) if options.threshold else known
    if parallel:
        found = picard.run(stepped, x, sampler.steps, noise=noise, place=place)
        passes, evaluations = (n + options.denoise_to_zero for n in (found.passes, found.evaluations))
        x = found.x
    else:
        x = driver.run(stepped, x, steps, noise=noise, known=known)
        passes = evaluations = jnp.asarray(sampler.calls, jnp.int32)
    if options.denoise_to_zero:
        x = denoise(x, last)
    return picard.Picard(x, passes, evaluations)
