"""Averages of weights whose width is chosen after training: power functions of time, and what they span.

Source: Karras et al. 2024 (arXiv:2312.02696), section 3 and appendix C. Times are images of the run, widths
`sigma_rel` the standard deviation of an average's profile as a share of the time that has passed.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import trees
from fastdiff_jax.types import Array, Method, Params, PyTree, State

WIDEST = 12**-0.5  # of the plain running mean, exponent 0


def exponent(sigma_rel: float) -> float:
    """gamma of the profile (gamma + 1) tau^gamma / t^(gamma+1) on [0, t] that has a width.

        sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    Raises: ValueError for a width outside (0, 1/sqrt(12)).
    """
    if not 0 < sigma_rel < WIDEST:
        raise ValueError(
            f"the relative width of an average lies between 0 and {WIDEST:.4f}, that of the plain mean; "
            f"got {sigma_rel}."
        )
    square = float(sigma_rel) ** -2
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def width(gamma: float) -> float:
    """sigma_rel of an exponent; the inverse of `exponent`."""
    return float(np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))))


def share(images: Array, batch: float, gamma: float) -> Array:
    """1 - beta, what a step adds of the newest weights: beta = (1 - batch / images)^(gamma + 1).

    The first step, where images equals batch, has share 1: initial weights vanish. It is computed without
    beta, which float32 cannot tell from 1 late in a long run.

    Args:
      images: () or more, of the run AFTER the step.
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-batch / images))


def moved(average: PyTree, latest: PyTree, weight: Array) -> PyTree:
    """average + weight (latest - average), leaf by leaf."""
    return jax.tree.map(lambda a, p: a + weight.astype(p.dtype) * (p - a), average, latest)


def overlap(t_a, gamma_a, t_b, gamma_b) -> np.ndarray:
    """Inner products of two profiles, host float64, broadcast.

        (g_a + 1) (g_b + 1) / ((g_a + g_b + 1) max(t_a, t_b)) (t_a / t_b)^q,    q = g_b if t_a < t_b else -g_a
    """
    t_a, gamma_a, t_b, gamma_b = (np.asarray(v, np.float64) for v in (t_a, gamma_a, t_b, gamma_b))
    power = np.where(t_a < t_b, gamma_b, -gamma_a)
    size = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
    return size * (t_a / t_b) ** power


def coefficients(times: Sequence[float], gammas: Sequence[float], time: float, gamma: float) -> np.ndarray:
    """Factors (S,) of S snapshots whose sum is nearest to the average of exponent gamma at `time`.

    They solve A c = b with A the overlaps of the snapshots' profiles and b those with the target's, and are
    scaled to sum to one. For a target that is a snapshot they are one-hot. Narrower targets than any snapshot,
    and much wider ones, are met badly.

    Args:
      times, gammas: (S,) of the snapshots, all at 0 < t <= `time`.
    Raises: ValueError for two snapshots of one time and exponent, none at `time`, or later ones.
    Source: arXiv:2312.02696, appendix C.2; the authors' code scales the sum, their listing does not.
    """
    times, gammas = np.asarray(times, np.float64), np.asarray(gammas, np.float64)
    pairs = set(zip(times.tolist(), gammas.tolist()))
    if len(pairs) < len(times):
        raise ValueError("two snapshots have the same time and width; drop one of them.")
    if not np.any(times == time) or times.min() <= 0 or times.max() > time:
        raise ValueError(
            f"an average at {time:.0f} images is made of snapshots up to there, one of them there; got "
            f"{', '.join(f'{t:.0f}' for t in np.unique(times)) or 'none'}."
        )
    matrix = overlap(times[:, None], gammas[:, None], times[None], gammas[None])
    found = np.linalg.solve(matrix, overlap(times, gammas, time, gamma))
    return found / found.sum()


def combined(factors: Iterable[float], snapshots: Iterable[PyTree], dtype=np.float32) -> PyTree:
    """sum_i factors_i snapshots_i, accumulated in `dtype`; the snapshots are asked for one at a time."""
    total = None
    for factor, tree in zip(factors, snapshots, strict=True):
        part = jax.tree.map(lambda leaf, f=factor: leaf.astype(dtype) * np.asarray(f, dtype), tree)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total


class Tracked(NamedTuple):
    """A method's state, and power-function averages of the weights that it trains."""

    state: State
    averages: tuple[Params, ...]  # one an exponent

    @property
    def step(self) -> Array:
        """() int32, steps done."""
        return self.state.step


def tracked(method: Method, gammas: Sequence[float]) -> Method:
    """`method` with averages of its raw weights beside whatever it averages itself; nothing else changes."""
    raw = method.raw or method.weights

    def init(key, frozen):
        state = method.init(key, frozen)
        return Tracked(state, tuple(trees.copy(raw(state)) for _ in gammas))

    def update(state, frozen, batch, draws, variant):
        inner, metrics = method.update(state.state, frozen, batch, draws, variant)
        steps = inner.step.astype(jnp.result_type(float))  # a step as the unit of time
        averages = tuple(
            moved(average, raw(inner), share(steps, 1.0, gamma))
            for average, gamma in zip(state.averages, gammas, strict=True)
        )
        return Tracked(inner, averages), metrics

    def advance(state, step):
        inner = method.advance(state.state, step)
        return state if inner is state.state else state._replace(state=inner)

    return method._replace(
        init=init,
        update=update,
        advance=advance,
        weights=lambda state: method.weights(state.state),
        raw=lambda state: raw(state.state),
    )
