"""A fine trajectory and a coarse one on nested levels: a teacher's states where its student should pass.

A coarse run of n levels makes n - 1 steps; the fine one visits `extra` more levels in every interval.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastdiff_jax import guidance, registry
from fastdiff_jax.solvers import driver, multistep, named
from fastdiff_jax.types import Array, Denoiser, Schedule, Solver


class Teacher(NamedTuple):
    """How the teacher walks."""

    solver: Solver
    afs: bool = False
    threshold: bool = False
    stamps: int | None = None  # what it is told, if it is a student of SFD-v itself


class Path(NamedTuple):
    """The levels of one trajectory, host float64."""

    student: np.ndarray  # (n,)
    teacher: np.ndarray  # ((extra + 1) (n - 1) + 1,), the student's among them


def teacher_of(request: Mapping) -> Teacher:
    """A solver by name, with its options; `afs`, `threshold` and `stamps` are the walk's own.

    Raises: ValueError for an unknown solver or option.
    """
    solver = dict(request)
    own = {key: solver.pop(key) for key in ("afs", "threshold", "stamps") if key in solver}
    return Teacher(registry.choose(registry.entries("solvers", "SOLVERS"), solver, "solver"), **own)


def path_of(schedule: Schedule, stamps: int, extra: int) -> Path:
    """The student's n levels and the teacher's, which has `extra` more in every interval.

    Raises: ValueError for fewer than two levels, a negative number more, and for a schedule whose levels for
      n - 1 steps are not among those for (extra + 1) (n - 1).
    """
    if stamps < 2 or extra < 0:
        raise ValueError(
            f"a trajectory has 2 levels or more, and extra is not negative; got {stamps} levels, "
            f"extra {extra}."
        )
    student = driver.levels(schedule(stamps - 1))
    teacher = driver.levels(schedule((extra + 1) * (stamps - 1)))
    shared = teacher[:: extra + 1]
    apart = np.flatnonzero(~np.isclose(shared, student, rtol=1e-6, atol=0.0))
    if len(apart):
        i = apart[0]
        raise ValueError(
            f"the student's levels must be among the teacher's, but level {i} is {student[i]:g} "
            f"where the teacher has {shared[i]:g}; use a schedule that nests, such as one with zero=False."
        )
    return Path(student, teacher)


def targets(denoise: Denoiser, teacher: Teacher, x: Array, path: Path) -> Array:
    """(n-1,B,...) the teacher's states at the student's levels but the first, from x (B,...) there."""
    every = (len(path.teacher) - 1) // (len(path.student) - 1)
    known = None
    if teacher.threshold:
        denoise = guidance.thresholded(denoise)
    if teacher.afs:
        known = guidance.gaussian_guess(x, path.teacher[0])
        known = guidance.dynamic_threshold(known) if teacher.threshold else known
    trace = driver.sample(denoise, teacher.solver, x, path.teacher, known=known, trace=True)
    return trace.states[every::every]


def walked(denoise: Denoiser, latents: Array, path: Path, afs: bool) -> Array:
    """Images (B,...) of a student from standard normal latents (B,...): Euler's method on its levels."""
    euler = named.Named(multistep.euler(), path.student, named.Options(afs=afs))
    return named.generate(denoise, euler, latents)
