"""The one loop of all samplers: it scans a solver's steps over its noise levels.

`sample` is for host-side levels. Under jit these would be constants of the program; a caller that wants
programs to be shared passes `prepare(solver, sigmas, dtype)` as an argument to its jitted function and calls
`run` there. `Steps` are equal as jit arguments when step function, plan and shapes are: Euler, DDIM and
DPM-Solver++(1M) with the same number of steps are then one executable.
"""

import dataclasses
import itertools
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.rng import stream
from fastdiff_jax.types import Array, At, Denoiser, Keys, Noise, Solver


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("index", "sigma", "sigma_next", "row"),
    meta_fields=("plan", "step", "init"),
)
@dataclasses.dataclass(frozen=True)
class Steps:
    """A solver on given levels: numbers as arrays with leading axis N, structure as static fields."""

    index: Array
    sigma: Array
    sigma_next: Array
    row: Any
    plan: tuple[Hashable, ...]
    step: Callable
    init: Callable


class Trace(NamedTuple):
    """A run in full: states[i] is x at sigma_i, predictions[i] the x0 of step i's first network call.

    A step that makes no call (UniPC's last) has NaN there.
    """

    states: Array  # (N+1, B, ...)
    predictions: Array  # (N, B, ...)


def predict(denoise: Denoiser, x: Array, at: At) -> Array:
    """x0 (B,...) at the start of a step: what is known there, else a network call."""
    return denoise(x, at.sigma) if at.known is None else at.known


def levels(sigmas, repeats: bool = False) -> np.ndarray:
    """`sigmas` (N+1,) as host float64.

    Args:
      repeats: whether neighbours may be equal.
    Raises: ValueError unless they are finite, strictly decreasing, positive but for a last zero, and known
      on the host.
    """
    try:
        sigmas = np.asarray(sigmas, np.float64)
    except jax.errors.TracerArrayConversionError:
        raise ValueError(
            "noise levels must be known on the host; give a jitted function prepare(...) and call run."
        ) from None
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"noise levels are (N+1,) for N >= 1 steps; got shape {sigmas.shape}.")
    if not np.isfinite(sigmas).all():
        raise ValueError(f"noise levels must be finite; got {sigmas[~np.isfinite(sigmas)][0]}.")
    rising = np.flatnonzero((np.diff(sigmas) > 0) | ((np.diff(sigmas) == 0) & (not repeats)))
    if len(rising):
        i = rising[0]
        raise ValueError(
            f"noise levels must strictly decrease; got {sigmas[i]:g} then {sigmas[i + 1]:g} at step {i}; "
            "use fewer steps if rounding merged them."
        )
    if sigmas[-1] < 0 or sigmas[-2] == 0:
        raise ValueError(f"noise levels must be positive, only the last may be zero; got {sigmas[-2:]}.")
    return sigmas


def evaluations(solver: Solver, sigmas, known: bool = False) -> int:
    """Network calls of one run over `sigmas` (N+1,), exact; one fewer if x0 at sigmas[0] is known."""
    return sum(map(solver.evaluations, solver.plan(levels(sigmas, solver.repeats)))) - known


def prepare(solver: Solver, sigmas, dtype=jnp.float32) -> Steps:
    """The numbers and the structure of a run, as a pytree that a jitted function takes as an argument.

    Args:
      sigmas: (N+1,) levels, see `levels`.
      dtype: of the state; narrower ones are carried as float32, in which the numbers then are.
    Raises: ValueError for levels that cannot be sampled at.
    """
    sigmas = levels(sigmas, solver.repeats)
    width = wide(dtype)

    def narrow(values):  # on the host, but for coefficients that are being learned
        return values.astype(width) if isinstance(values, jax.Array) else np.asarray(values, width)

    return Steps(
        index=np.arange(len(sigmas) - 1, dtype=np.int32),
        sigma=narrow(sigmas[:-1]),
        sigma_next=narrow(sigmas[1:]),
        row=jax.tree.map(narrow, solver.table(sigmas)),
        plan=tuple(solver.plan(sigmas)),
        step=solver.step,
        init=solver.init,
    )


def wide(dtype) -> np.dtype:
    """The dtype that a state of `dtype` is carried in: small steps vanish in less than float32."""
    return jnp.promote_types(dtype, jnp.float32)


def sample(denoise: Denoiser, solver: Solver, x: Array, sigmas, **options) -> Array | Trace:
    """Carries x (B,...) down the levels `sigmas` (N+1,), from sigmas[0] to sigmas[-1].

    Args:
      sigmas: host float64, decreasing; only the last may be zero, as nothing is evaluated there.
      options: noise, known, start, trace, unroll; see `run`.
    Raises: ValueError if the levels do not decrease.
    """
    return run(denoise, x, prepare(solver, sigmas, x.dtype), **options)


def run(
    denoise: Denoiser,
    x: Array,
    steps: Steps,
    *,
    noise: Noise | None = None,
    known: Array | None = None,
    start: Array | None = None,
    trace: bool = False,
    unroll: int | bool = 1,
) -> Array | Trace:
    """Carries x (B,...) through prepared steps; equal neighbours of the plan share one compiled body.

    Args:
      noise: (step index, draw index) -> standard normal like x; only stochastic solvers call it.
      known: x0 (B,...) at the first level if known without a call (AFS): saves one evaluation.
      start: () index of the first step taken, may be traced; x is then at that level, and N returns x. The
        loop's length is then unknown to the compiler, so gradients do not pass.
      trace: return a `Trace` instead of the last state.
      unroll: of the scan; True where gradients of convolutions pass through on a CPU, which crawl in loops.
    Returns: x (B,...) at the last level, in its own dtype.
    Raises: ValueError if `start` is combined with `known` or `trace`.
    """
    if start is not None and (known is not None or trace):
        raise ValueError("start skips steps, so it goes with neither known nor trace; drop one of them.")
    dtype = x.dtype
    x = x.astype(wide(dtype))

    def body(carry, here, entry, known=None, fresh=None):
        index, first = here[0], []

        def watched(x, sigma):
            found = denoise(x.astype(dtype), sigma)  # x0, or (x0, features) of a tapped denoiser
            found = jax.tree.map(lambda value: value.astype(x.dtype), found)
            first.append(jax.tree.leaves(found)[0])
            return found

        at = At(*here, noise and partial(noise, index), known, fresh)
        x, history = steps.step(watched, carry[1], carry[0], at, plan=entry)
        if not trace:
            return (x, history), None
        if known is None and not first:
            first.append(jnp.full_like(x, jnp.nan))
        return (x, history), (x, first[0] if known is None else known)

    def rows(pick):
        table = (steps.index, steps.sigma, steps.sigma_next, steps.row)
        return jax.tree.map(lambda values: jnp.asarray(values)[pick], table)

    carry, first, pieces = (x, steps.init(x, steps.row)), 0, []
    if start is not None:
        return _from(start, carry, body, rows, steps.plan)[0].astype(dtype)
    if known is not None:
        carry, piece = body(carry, rows(0), steps.plan[0], known.astype(x.dtype))
        first, pieces = 1, [jax.tree.map(lambda v: v[None], piece)]
    for entry, low, high in segments(steps.plan, first):
        part = rows(slice(low, high))
        carry, piece = jax.lax.scan(partial(body, entry=entry), carry, part, unroll=unroll)
        pieces.append(piece)
    if not trace:
        return carry[0].astype(dtype)
    states, predictions = (jnp.concatenate(parts) for parts in zip(*pieces, strict=True))
    return Trace(jnp.concatenate([x[None], states]).astype(dtype), predictions.astype(dtype))


def segments(plan: tuple[Hashable, ...], first: int = 0) -> list[tuple[Hashable, int, int]]:
    """(entry, low, high) of the runs of equal entries of plan[first:]."""
    runs = []
    for entry, group in itertools.groupby(range(first, len(plan)), plan.__getitem__):
        group = list(group)
        runs.append((entry, group[0], group[-1] + 1))
    return runs


def _from(start, carry, body, rows, plan):
    """The carry after steps start..N-1, each segment a loop whose length is known at run time only."""
    start = jnp.clip(start, 0, len(plan))
    for entry, low, high in segments(plan):

        def step(i, carry, entry=entry):
            return body(carry, rows(i), entry, fresh=i == start)[0]

        carry = jax.lax.fori_loop(jnp.clip(start, low, high), high, step, carry)
    return carry


def per_image(keys: Keys, shape: tuple[int, ...], dtype=jnp.float32) -> Noise:
    """Noise (B, *shape) of a stochastic solver from keys (B,), one per image: independent of the batch."""
    roots = jax.vmap(lambda key: stream(key, "noise"))(keys)

    def noise(step, draw):
        def one(root):
            key = jax.random.fold_in(jax.random.fold_in(root, step), draw)
            return jax.random.normal(key, shape, dtype)

        return jax.vmap(one)(roots)

    return noise
