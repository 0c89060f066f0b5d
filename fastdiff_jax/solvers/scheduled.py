"""The Sampler Scheduler: one sampler made of several, each on its own segment of the noise levels.

Every segment's table and plan are made on its own levels, so warm-up fires at its first steps and the rule
for the last step at its end; its history starts empty. Noise is keyed by the step's index in the whole run,
so plans are comparable. Source: Cheng 2023 (arXiv:2311.06845), with segments as in the author's code.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.precond import same
from fastdiff_jax.solvers import multistep, stochastic
from fastdiff_jax.types import Array, Solver

# What a history holds, of the steps whose histories can be handed on.
KEPT = {
    multistep.from_data: "x0",
    multistep.from_noise: "eps",
    stochastic.from_data: "x0",
}


class Segment(NamedTuple):
    """One solver and its number of steps, None for those that the others leave."""

    name: str
    steps: int | None
    solver: Solver


class Entry(NamedTuple):
    """A step of the plan."""

    segment: int  # whose row it takes
    slot: int  # of the history it keeps
    step: Callable
    inner: Hashable  # the segment's own entry
    calls: int


def calls(entry: Entry) -> int:
    """Network calls of a plan's entry."""
    return entry.calls


@dataclasses.dataclass(frozen=True)
class Histories:
    """The initial histories, one a slot; equal by value, so that equal plans share executables."""

    inits: tuple[Callable, ...]

    def __call__(self, x, rows):
        return tuple(init(x, row) for init, row in zip(self.inits, rows, strict=False))


def dispatched(denoise, histories, x, at, *, plan):
    """The step of the segment that the plan's entry names, on its row and its history."""
    own = at._replace(row=at.row[plan.segment])
    x, history = plan.step(denoise, histories[plan.slot], x, own, plan=plan.inner)
    return x, (*histories[: plan.slot], history, *histories[plan.slot + 1 :])


def scheduled(
    segments: Sequence = (("heun", None),),
    carry_history: bool = False,
    rounding: Callable[[Array], Array] = same,
) -> Solver:
    """A sampler of several solvers on consecutive segments of the levels.

    Each segment ends as the reference's do: solvers that have the option take lower_order_final=True unless
    told otherwise, so Heun and DPM-2 end in an Euler step and DPM-Solver++(2M) in one of order 1.

    Args:
      segments: of (solver, steps) or (solver, steps, options), where the solver is a name or a mapping of
        its "name" and options; or of mappings that hold "steps" as well. One may have None steps: all that
        are left.
      carry_history: a segment goes on from the predictions of the one before instead of warming up anew; for
        multistep solvers that keep one kind of prediction.
      rounding: for the solvers that take it, `Precond.round`.
    Raises: ValueError for no segments, an unknown solver or option, fewer than one step, two open segments, and
      histories that cannot be handed on; on the levels of a run, for steps that no segment covers and for more
      than there are.
    Warns: if the last segment adds noise, which no step after it takes away.
    """
    parts = [_segment(given, rounding) for given in segments]
    if not parts:
        raise ValueError("a scheduled sampler needs at least one segment, e.g. (('heun', 6), ('dpm_2', 4)).")
    if sum(part.steps is None for part in parts) > 1:
        names = [part.name for part in parts if part.steps is None]
        raise ValueError(f"only one segment can take the steps that are left; got {', '.join(names)}.")
    if parts[-1].name in registry.entries("solvers", "WEAK_ORDERS"):
        last = f"the last segment, {parts[-1].name}, adds noise that no later step takes away"
        warnings.warn(f"{last}; end with a deterministic solver.", stacklevel=2)
    if carry_history:
        _check_kept(parts)
    counts = [part.steps for part in parts]

    def plan(sigmas):
        steps, entries = len(sigmas) - 1, []
        for q, (low, high) in enumerate(spans(counts, steps, short=None in counts)):
            solver, slot = parts[q].solver, 0 if carry_history else q
            inner = solver.plan(sigmas[low : high + 1]) if high > low else ()
            entries += [Entry(q, slot, solver.step, own, solver.evaluations(own)) for own in inner]
        return tuple(entries)

    def table(sigmas):
        steps, rows = len(sigmas) - 1, []
        for part, (low, high) in zip(parts, spans(counts, steps), strict=True):
            # With its history handed on, a segment's steps are those of a run that came all the way.
            first = 0 if carry_history else low
            own = part.solver.table(sigmas[first : high + 1])
            rows.append(_placed(own, low - first, low, steps - high))
        return tuple(_widened(rows) if carry_history else rows)

    inits = [part.solver.init for part in parts]
    return Solver(
        dispatched,
        Histories(tuple(inits[:1] if carry_history else inits)),
        table,
        plan,
        calls,
        repeats=all(part.solver.repeats for part in parts),
        guessed=parts[0].solver.guessed,
        steps=None if None in counts else sum(counts),
    )


def spans(counts: Sequence[int | None], steps: int, short: bool = False) -> list[tuple[int, int]]:
    """(first step, step after the last) of each segment, in a run of `steps` steps.

    Args:
      short: a run of too few steps is cut off instead of refused: while a named sampler looks for its
        number of steps, it asks what fewer would cost. Such a run still has no table.
    Raises: ValueError unless the segments cover the steps exactly.
    """
    fixed = sum(count or 0 for count in counts)
    asked = " + ".join("rest" if count is None else str(count) for count in counts)
    if None in counts and steps <= fixed and not short:
        raise ValueError(
            f"segments of {asked} steps leave none for the rest of {steps}; use at least {fixed + 1} steps."
        )
    if None not in counts and fixed < steps:
        raise ValueError(
            f"segments of {asked} steps leave a gap: {steps - fixed} of {steps} steps are missing; add them "
            "to a segment, or give one None steps."
        )
    if None not in counts and fixed > steps:
        raise ValueError(
            f"segments of {asked} steps are {fixed - steps} too many for {steps}; shorten them, or use "
            f"{fixed} steps."
        )
    lengths = [max(steps - fixed, 0) if count is None else count for count in counts]
    ends = np.minimum(np.cumsum([0, *lengths]), steps).tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))


def _segment(given, rounding):
    """The `Segment` of a request."""
    if hasattr(given, "keys"):
        config = dict(given)
    elif isinstance(given, str) or not 2 <= len(given) <= 3:
        raise ValueError(f"a segment is (solver, steps), (solver, steps, options) or a mapping; got {given!r}.")
    else:
        solver, steps, *options = given
        config = dict(solver) if hasattr(solver, "keys") else {"name": solver}
        config |= {"steps": steps} | dict(*options)
    steps = config.pop("steps", None)
    name, factories = config.get("name"), registry.entries("solvers", "SOLVERS")
    if steps is not None and (steps < 1 or steps != int(steps)):
        raise ValueError(f"a segment has a whole number of steps, at least one; got {steps} of {name}.")
    if name in factories:
        taken = inspect.signature(factories[name]).parameters
        if "nfe" in taken and config.get("nfe") is None:
            raise ValueError(f"{name} plans its steps by a run's calls; give its segment the option nfe.")
        defaults = {"lower_order_final": True, "rounding": rounding}
        config = {option: value for option, value in defaults.items() if option in taken} | config
    solver = registry.choose(factories, config, "solver")
    steps = solver.steps if steps is None else int(steps)
    if solver.steps not in (None, steps):
        raise ValueError(f"{name} is made for {solver.steps} steps; its segment has {steps}.")
    return Segment(name, steps, solver)


def _check_kept(parts):
    kinds = [KEPT.get(part.solver.step) for part in parts]
    if None in kinds or len(set(kinds)) > 1:
        found = ", ".join(
            f"{part.name} ({kind or 'none that can be'})" for part, kind in zip(parts, kinds, strict=True)
        )
        raise ValueError(
            f"carry_history needs segments that all keep x0, or all eps; these keep {found}: use "
            "carry_history=False, or other solvers."
        )


def _placed(rows, skipped, before, after):
    """Rows of one segment among those of the whole run, zeros elsewhere."""

    def one(values):
        values = np.asarray(values)[skipped:]
        return np.pad(values, [(before, after)] + [(0, 0)] * (values.ndim - 1))

    return jax.tree.map(one, rows)


def _widened(rows):
    """Rows whose histories are all as long as the longest."""
    width = max(row.b.shape[1] for row in rows)
    return [row._replace(b=np.pad(row.b, ((0, 0), (0, width - row.b.shape[1])))) for row in rows]


SOLVERS = {"scheduled": scheduled}
ORDERS = {"scheduled": 2}  # of its default, Heun
