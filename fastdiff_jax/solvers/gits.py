"""GITS: noise levels for few steps, searched by dynamic programming on the shape of fine trajectories.

    c_ij    = how far ONE Euler jump from fine level i to fine level j misses the trajectory
    V_i^1   = c_iN,    V_i^k = min over i < j < N of c_ij + coeff V_j^{k-1}

V_0^K is the cost of K steps through fine levels 0..N. The result is levels like any others: a config takes
them as the schedule `levels`. Texts that count time stamps mean n = K + 1 and N_t = N + 1.

Source: Chen et al. 2024 (arXiv:2405.11326), section 3 and Alg. 1.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import guidance
from fastdiff_jax.solvers import driver
from fastdiff_jax.solvers.driver import Trace
from fastdiff_jax.types import Array, Denoiser, Solver, expand


def deviation(points: Array, start: Array, end: Array) -> Array:
    """Distance of points (...,B,d...) from the straight line through `start` and `end` (B,d...): (...,B).

    Where the ends coincide it is the distance from them.
    """
    lead = points.ndim - start.ndim
    chord = (end - start).reshape(len(start), -1)
    rest = (end - points).reshape(*points.shape[: lead + 1], -1)
    square = jnp.sum(chord**2, -1)
    along = jnp.sum(rest * chord, -1) / jnp.where(square > 0, square, 1)
    return jnp.linalg.norm(rest - along[..., None] * chord, axis=-1)


def by_deviation(states: Array) -> Callable[[Array], Array]:
    """The metric dev: by how much a jump bends away from the chord more than the trajectory does.

    It may be negative. States and what jumps reach are (N+1,B,...); the misses are (N+1,).
    """
    bent = partial(deviation, start=states[0], end=states[-1])
    own = bent(states).mean(1)
    return lambda reached: bent(reached).mean(1) - own


def by_norm(states: Array, order: int) -> Callable[[Array], Array]:
    """The metrics l1 and l2: mean norm of the difference from the trajectory."""
    flat = states.reshape(*states.shape[:2], -1)

    def miss(reached):
        return jnp.linalg.norm(reached.reshape(flat.shape) - flat, order, axis=-1).mean(1)

    return miss


METRICS = {"dev": by_deviation, "l1": partial(by_norm, order=1), "l2": partial(by_norm, order=2)}


def costs(trace: Trace, sigmas, metric: str = "dev") -> Array:
    """(N+1,N+1) costs of Euler jumps between the levels of a run; zero where j <= i.

    Args:
      trace: a run whose every step begins with a call at its own start, see `check_fine_solver`.
      sigmas: (N+1,) its levels.
      metric: "dev", "l1" or "l2".
    Raises: ValueError for another metric.
    """
    if metric not in METRICS:
        raise ValueError(f"no metric {metric!r} of a jump; known: {', '.join(METRICS)}.")
    states, sigmas = trace.states, jnp.asarray(sigmas, trace.states.dtype)
    miss = METRICS[metric](states)

    def row(jump):
        x, x0, sigma = jump
        slope = (x - x0) / sigma
        return miss(x + expand(sigmas - sigma, states) * slope)

    # One row at a time: all jumps at once would hold (N+1)^2 batches.
    rows = jax.lax.map(row, (states[:-1], trace.predictions, sigmas[:-1]))
    return jnp.triu(jnp.pad(rows, ((0, 1), (0, 0))), 1)


def rounds(num: int, batch: int) -> int:
    """Batches of a warm-up with `num` images, as the reference counts them: the last may be beyond need."""
    return num // (batch + 1) + 1


def check_steps(steps: int, fine: int) -> None:
    """Raises ValueError unless `fine` steps can be thinned out to `steps`."""
    if steps != int(steps) or not 1 <= steps <= fine:
        raise ValueError(
            f"a path through {fine} fine steps takes 1 to {fine}; got {steps}: ask for fewer, or "
            "search a finer schedule."
        )


def check_coeff(coeff: float) -> None:
    """Raises ValueError unless the weight of later jumps is positive and finite."""
    if not 0 < coeff < np.inf:
        raise ValueError(f"the coefficient weighs later jumps, so it is positive and finite; got {coeff}.")


def path(costs, steps: int, coeff: float = 1.15) -> np.ndarray:
    """(steps+1,) indices of the cheapest path from the first fine level to the last, int64.

    Args:
      costs: (N+1,N+1); only j > i is read.
      coeff: each later jump weighs this factor more than the one before it. Above 1, late misses, which
        nothing repairs, are dearer; with 1 it is the shortest path.
    Returns: of equally cheap continuations the one with the smallest index.
    Raises: ValueError for a matrix that is not square or has gaps, steps that do not fit, and a coefficient
      that is not positive.
    """
    costs = np.asarray(costs, np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or len(costs) < 2:
        raise ValueError(f"costs are (N+1,N+1) for N >= 1 fine steps; got shape {costs.shape}.")
    last = len(costs) - 1
    check_steps(steps, last)
    check_coeff(coeff)
    forward = np.triu(np.ones_like(costs, bool), 1)
    gaps = np.argwhere(forward & ~np.isfinite(costs))
    if len(gaps):
        i, j = gaps[0]
        raise ValueError(
            f"costs must be finite for every jump ahead; got {costs[i, j]} from {i} to {j}: "
            "warm up with a solver that stays finite."
        )
    jumps = np.where(forward, costs, np.inf)
    value, choices = jumps[:, last], []
    jumps = jumps[:, :last]  # all but the last jump end before the last level
    for _ in range(steps - 1):
        totals = jumps + coeff * value[:last]
        choices.append(totals.argmin(1))  # the first of equals
        value = totals.min(1)
    indices = [0]
    for choice in reversed(choices):
        indices.append(int(choice[indices[-1]]))
    return np.array([*indices, last])


def with_first(indices: np.ndarray, distance: Callable[[np.ndarray], float]) -> np.ndarray:
    """A path with one more level right after the first, for samplers with an analytical first step.

    The number of network calls stays: the first step of the longer path makes one call less.

    Args:
      indices: (K+1,) of a path.
      distance: (K+2,) indices -> how far the sampler on them ends from the fine trajectory.
    Returns: (K+2,) the candidate with the smallest distance, of equals the earliest.
    Raises: ValueError if there is no fine level between the first two.
    """
    candidates = [np.insert(indices, 1, k) for k in range(indices[0] + 1, indices[1])]
    if not candidates:
        raise ValueError(
            f"an analytical first step needs a fine level between the first two of {indices.tolist()}; "
            "search a finer schedule, or for fewer steps."
        )
    return candidates[int(np.argmin([float(distance(one)) for one in candidates]))]


def check_fine_solver(solver: Solver, sigmas: np.ndarray) -> None:
    """Raises ValueError for a solver that adds noise, or a step whose first call is not at its own start."""

    def level(x, sigma):
        return jnp.broadcast_to(expand(sigma, x), x.shape).astype(x.dtype)

    def noise(step, draw):
        raise ValueError("a warm-up follows the ODE, and this solver adds noise: use euler, heun or ipndm_4.")

    trace = driver.sample(level, solver, jnp.ones((1, 1)), sigmas, noise=noise, trace=True)
    called = np.asarray(trace.predictions)[:, 0, 0]
    wrong = np.flatnonzero(~np.isclose(called, sigmas[:-1], rtol=1e-5, atol=0))
    if len(wrong):
        raise ValueError(
            "the solver of a warm-up calls the network first at the start of each step; this one does not at "
            f"step {wrong[0]}: use euler, heun or ipndm_4."
        )


def search(
    denoise: Denoiser,
    latents: Array,
    sigmas: np.ndarray,
    steps: int,
    *,
    solver: Solver,
    metric: str = "dev",
    coeff: float = 1.15,
    student: Solver | None = None,
) -> np.ndarray:
    """The levels (steps+1,) out of `sigmas` (N+1,) whose Euler jumps miss the fine trajectories least.

    Args:
      latents: (R,B,...) standard normal; the costs of the R rounds are averaged.
      sigmas: host float64, the fine levels.
      solver: of the fine trajectories; `check_fine_solver` says which will do.
      metric, coeff: see `costs` and `path`.
      student: the solver that will use the levels, if with an analytical first step: one level more is then
        returned, the one with which it ends nearest (mean L2) to the fine trajectories of the last round.
    Returns: host float64, decreasing, from sigmas[0] to sigmas[-1].
    Raises: ValueError as `path`, `costs`, `with_first` and `check_fine_solver`.
    """
    sigmas = driver.levels(sigmas)
    check_steps(steps, len(sigmas) - 1)
    check_coeff(coeff)
    check_fine_solver(solver, sigmas)

    @jax.jit
    def warm_up(x, fine):
        trace = driver.run(denoise, x, fine, trace=True)
        return costs(trace, sigmas, metric), trace.states[-1]

    @jax.jit
    def ended(x, few):
        return driver.run(denoise, x, few, known=guidance.gaussian_guess(x, sigmas[0]))

    fine, found = driver.prepare(solver, sigmas, latents.dtype), []
    for x in float(sigmas[0]) * latents:
        matrix, final = warm_up(x, fine)
        found.append(np.asarray(matrix, np.float64))
    indices = path(np.mean(found, 0), steps, coeff)
    if student is None:
        return sigmas[indices]

    def distance(candidate):
        out = ended(x, driver.prepare(student, sigmas[candidate], x.dtype))
        return mean_distance(out, final)

    return sigmas[with_first(indices, distance)]


def mean_distance(x: Array, target: Array) -> Array:
    """Mean L2 distance of (B,...) from (B,...)."""
    return jnp.linalg.norm((x - target).reshape(len(x), -1), axis=1).mean()
