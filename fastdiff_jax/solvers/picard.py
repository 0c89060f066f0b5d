"""ParaDiGMS: a window of a sampler's steps at once, by Picard iteration (Shih et al. 2023, arXiv:2305.16317).

A sampler is z_{j+1} = z_j + delta_j(z_j), so its states solve the fixed-point equation

    z_{j+1} = z_b + sum_{i=b..j} delta_i(z_i)        for all steps j of a window b <= j < e

Every pass evaluates the window in one batched network call, adds up, and moves the window past the states that
no longer change. A state is exact once all before it are, so a pass gains at least one step: the sequential
run's result up to a tolerance, for fewer network calls in a row and more in all.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.solvers import driver
from fastdiff_jax.types import Array, At, Denoiser, Noise, Solver, expand

OUTSIDE = -1.0  # in place of an error, where a pass had no state


class Settings(NamedTuple):
    """A parallel sampler's, as a config gives them."""

    window: int  # steps evaluated at once
    tolerance: float  # see `prepare`


class Trace(NamedTuple):
    """Every pass of a run: room for N passes, of which the first `Picard.passes` are filled."""

    buffers: Array  # (N+1, N+1, B, ...) all states z before the first pass and after every one
    errors: Array  # (N, window, B) of the states that the pass wrote; OUTSIDE elsewhere
    ranges: Array  # (N, 2) the window's first step, and the first one behind it


class Picard(NamedTuple):
    """Where a run ends, and what it cost."""

    x: Array  # (B, ...)
    passes: Array  # () network calls in a row: the sequential depth
    evaluations: Array  # () network calls per image in all: the sum of the windows' lengths
    trace: Trace | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("steps", "scale", "variance", "tolerance"),
    meta_fields=("window", "restart"),
)
@dataclasses.dataclass(frozen=True)
class Windows:
    """A prepared run: numbers as arrays, structure as static fields."""

    steps: driver.Steps
    scale: Array  # (N+1,)
    variance: Array  # (N,)
    tolerance: Array  # ()
    window: int
    restart: bool


class _Carry(NamedTuple):
    """What a pass hands to the next one."""

    begin: Array  # the first step whose start is final
    passes: Array
    evaluations: Array
    states: Array  # (window+1, B, ...) z from `begin` on
    history: Any  # the solver's before step `begin`
    trace: Trace | None


def unit_scale(sigmas) -> np.ndarray:
    """(N+1,) 1 / sqrt(1 + sigma^2): coordinates in which data of unit variance keep it at all levels.

    The initial guess, that no state moves, is of the right size there; in EDM coordinates it is not, and a run
    takes more passes.
    """
    return 1 / np.sqrt(1 + np.asarray(sigmas, np.float64) ** 2)


def check(solver: Solver, sigmas, window: int, tolerance: float) -> None:
    """Raises ValueError for a solver that cannot be iterated, a window below one, a tolerance that is none."""
    if not isinstance(window, Integral) or isinstance(window, bool) or window < 1:
        raise ValueError(f"a window is a whole number of steps, at least one; got {window!r}.")
    if not isinstance(tolerance, Real) or not 0 < tolerance < np.inf:
        raise ValueError(f"a tolerance is positive and finite; got {tolerance!r}.")
    plan = tuple(solver.plan(driver.levels(sigmas, solver.repeats)))
    calls = sorted({solver.evaluations(entry) for entry in plan})
    if calls != [1] or len(set(plan)) > 1:
        raise ValueError(
            "Picard iteration needs a solver whose steps are all alike and make one network call; this one's "
            f"make {' or '.join(map(str, calls))}: use a multistep solver such as euler or dpmpp_2m."
        )


def prepare(
    solver: Solver,
    sigmas,
    dtype=jnp.float32,
    *,
    window: int,
    tolerance: float,
    scale=None,
    variance=None,
    restart: bool = False,
) -> Windows:
    """The numbers and the structure of a run, as a pytree that a jitted function takes as an argument.

    A state z_{j+1} counts as settled when a pass changed it by no more than

        mean over its elements of (new - old)^2 <= tolerance^2 variance_{j+1},       variance_N = 0

    in every image of the batch. So the last state is settled only by not changing at all, or as the result of
    the one step that is left.

    Args:
      solver: any whose steps are alike and make one network call each; it may keep a history, and add noise.
      sigmas: (N+1,) levels, see `driver.levels`.
      dtype: of the state, see `driver.prepare`.
      window: steps evaluated at once, the network's batch over B; more than N are N.
      tolerance: of the changes above.
      scale: (N+1,) of the coordinates z = scale x that are summed in, positive; None: x, see `unit_scale`.
      variance: (N,) of each step, not negative. The paper takes that of the noise which the step of the
        stochastic sampler adds; its entry 0 is not used. None: ones, so that the tolerance is a root mean
        square change in the coordinates z, which does not vanish with the levels.
      restart: a solver's history begins anew at every window, as in the authors' code: the window's first step
        is of first order, and the result is then not the sequential run's.
    Raises: ValueError for what `check` refuses, and arrays of other shapes or signs.
    """
    check(solver, sigmas, window, tolerance)
    steps = driver.prepare(solver, sigmas, dtype)
    count, narrow = len(steps.plan), partial(np.asarray, dtype=driver.wide(dtype))
    scale = _checked("scale", scale, count + 1, "positive", lambda values: values > 0)
    variance = _checked("variance", variance, count, "not negative", lambda values: values >= 0)
    numbers = map(narrow, (scale, variance, tolerance))
    return Windows(steps, *numbers, min(int(window), count), restart)


def picard(denoise: Denoiser, solver: Solver, x: Array, sigmas, **options) -> Picard:
    """Carries x (B,...) down the levels `sigmas` (N+1,), from sigmas[0] to sigmas[-1], a window at a time.

    Args:
      options: of `prepare` (window, tolerance, scale, variance, restart) and of `run` (noise, trace, place).
    Raises: ValueError as both.
    """
    of_run = {name: options.pop(name) for name in ("noise", "trace", "place") if name in options}
    return run(denoise, x, prepare(solver, sigmas, x.dtype, **options), **of_run)


def run(
    denoise: Denoiser,
    x: Array,
    windows: Windows,
    *,
    noise: Noise | None = None,
    trace: bool = False,
    place: Callable[[Array], Array] | None = None,
) -> Picard:
    """Carries x (B,...) through prepared steps; one loop of unknown length, so gradients do not pass.

    The batch shares one window and its slowest image decides, so within the tolerance an image depends on the
    images beside it. Windows behind the last step are filled up with steps that are evaluated, but not counted.

    Args:
      noise: (step index, draw index) -> standard normal like x, the same at every call; only stochastic solvers
        call it.
      trace: record all passes, in N^2 states of memory.
      place: applied to the window's states (window, B, ...) before the network, such as
        `jax.lax.with_sharding_constraint`, to spread the window over devices.
    Raises: ValueError for an empty batch, or noise of another shape.
    """
    windows = jax.tree.map(jnp.asarray, windows)
    steps, size, count = windows.steps, windows.window, len(windows.steps.plan)
    _check_shapes(x, noise)
    dtype, x = x.dtype, x.astype(driver.wide(x.dtype))
    table = (steps.index, steps.sigma, steps.sigma_next, steps.row)
    variance = jnp.append(windows.variance[1:], 0.0)  # of the state that a step reaches
    place = place or (lambda states: states)
    spots = jnp.arange(size)
    # What a history restarts by: the rows of a solver without past are of first order (At.fresh).
    fresh = spots == 0 if windows.restart else None

    def step(history, inputs):
        here, x, known, fresh = inputs
        at = At(*here, noise and partial(noise, here[0]), known, fresh)
        x, history = steps.step(_no_call, history, x, at, plan=steps.plan[0])
        return history, (x, history)

    def one_pass(carry):
        begin, old = carry.begin, carry.states
        length = jnp.minimum(size, count - begin)
        inside, here = spots < length, jnp.minimum(begin + spots, count - 1)
        rows = jax.tree.map(lambda values: values[here], table)
        x = place(old[:-1] / expand(windows.scale[here], old))
        # A map over the window, whose condition is that of the B images: the network sees one batch.
        known = jax.vmap(denoise)(x.astype(dtype), rows[1]).astype(x.dtype)
        _, (moved, histories) = jax.lax.scan(step, carry.history, (rows, x, known, fresh))
        delta = expand(windows.scale[here + 1], moved) * moved - old[:-1]
        new = jnp.concatenate([old[:1], old[0] + jnp.cumsum(delta, 0)])
        change = jnp.mean(jnp.square(new - old)[1:], axis=tuple(range(2, old.ndim)))
        errors = jnp.where(change == 0, 0.0, change / variance[here][:, None])  # 0/0 is no change
        settled = inside & jnp.all(errors <= windows.tolerance**2, axis=1)
        # The first state that is not settled is final as well: all that it was made from are.
        advance = jnp.minimum(1 + jnp.sum(jnp.cumprod(settled), dtype=jnp.int32), length)
        # Spots that are new to the window start as its last state.
        states = new[jnp.minimum(jnp.arange(size + 1) + advance, length)]
        history = jax.tree.map(lambda values: values[advance - 1], histories)
        errors = jnp.where(inside[:, None], errors, OUTSIDE)
        recorded = record(carry, length, advance, new, errors) if trace else None
        passes, evaluations = carry.passes + 1, carry.evaluations + length
        return _Carry(begin + advance, passes, evaluations, states, history, recorded)

    def record(carry, length, advance, new, errors):
        begin, number, every = carry.begin, carry.passes, jnp.arange(count + 1)
        before, until = carry.trace.buffers[number], jnp.minimum(begin + advance + size, count)
        written = expand((every > begin) & (every <= until), before)
        after = jnp.where(written, new[jnp.clip(every - begin, 0, length)], before)
        return Trace(
            carry.trace.buffers.at[number + 1].set(after),
            carry.trace.errors.at[number].set(errors),
            carry.trace.ranges.at[number].set(jnp.stack([begin, begin + length])),
        )

    z, zero, recorded = windows.scale[0] * x, jnp.zeros((), jnp.int32), None
    if trace:
        recorded = Trace(
            jnp.broadcast_to(z, (count + 1, count + 1, *z.shape)),
            jnp.full((count, size, len(z)), OUTSIDE, z.dtype),
            jnp.zeros((count, 2), jnp.int32),
        )
    states, history = jnp.broadcast_to(z, (size + 1, *z.shape)), steps.init(x, steps.row)
    carry = _Carry(zero, zero, zero, states, history, recorded)
    carry = jax.lax.while_loop(lambda carry: carry.begin < count, one_pass, carry)
    x = (carry.states[0] / windows.scale[-1]).astype(dtype)
    return Picard(x, carry.passes, carry.evaluations, carry.trace)


def _no_call(x, sigma):
    raise ValueError("under Picard iteration a solver's step makes no network call but the first.")


def _checked(name, values, length, what, holds):
    values = np.ones(length) if values is None else np.asarray(values, np.float64)
    if values.shape != (length,):
        raise ValueError(f"{name} is ({length},) for these levels; got shape {values.shape}.")
    if not (np.isfinite(values) & holds(values)).all():
        raise ValueError(f"{name} is finite and {what}; got {values.min():g} to {values.max():g}.")
    return values


def _check_shapes(x, noise):
    if not x.size:
        raise ValueError(f"a batch has at least one image; got shape {x.shape}.")
    if noise is not None:
        drawn = jax.eval_shape(lambda: jnp.asarray(noise(jnp.zeros((), jnp.int32), 0)))
        if drawn.shape not in ((), x.shape):
            raise ValueError(f"noise is of the latents' shape {x.shape}; got {drawn.shape}.")
