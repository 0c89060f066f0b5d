"""PNDM and PLMS: Adams-Bashforth on eps with constant weights, after a warm-up that makes more calls.

In the coordinates x = x0 + sigma eps the methods' transfer is DDIM's step, x + (sigma' - sigma) e; they differ
in what they take for e. Source: Liu et al. 2022 (arXiv:2202.09778).
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fastdiff_jax.precond import same
from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.solvers.schedules import on_host
from fastdiff_jax.types import Array, Solver, expand

# Weights of the latest predictions, newest first, by how many there are (Adams-Bashforth on an even grid).
WEIGHTS = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


class Row(NamedTuple):
    """Numbers of one step, or of all with a leading axis N."""

    b: Array  # (4,) weights of the latest predictions, newest first
    reached: Array  # () level that the first half step goes to
    told: Array  # () level that the network is told there, and that the second half step goes to
    factor: Array  # () that takes x at `reached` to x at `told`; 1 where they are one


def means(sigmas: np.ndarray) -> np.ndarray:
    """(N,) arithmetic means of neighbouring levels: the warm-up is then classical RK4 on dx/dsigma = eps."""
    return (sigmas[:-1] + sigmas[1:]) / 2


def step(denoise, latest, x, at, *, plan):
    """One step: of AB weights (plan 1), improved Euler (2) or Runge-Kutta (4), all with DDIM's transfer."""
    eps = _slope(denoise, x, at)
    latest = jnp.concatenate([eps[None], latest[:-1]])  # of later stages nothing is kept
    h = expand(at.sigma_next - at.sigma, x)
    if plan == 1:
        moved = sum(expand(b, x) * e for b, e in zip(at.row.b, latest, strict=True))
    elif plan == 2:
        moved = (eps + _eps(denoise, x + h * eps, at.sigma_next)) / 2
    else:
        reached, told, factor = (expand(value, x) for value in at.row[1:])
        sigma = expand(at.sigma, x)
        second = _eps(denoise, factor * (x + (reached - sigma) * eps), at.row.told)
        third = _eps(denoise, x + (told - sigma) * second, at.row.told)
        last = _eps(denoise, x + h * third, at.sigma_next)
        moved = (eps + 2 * second + 2 * third + last) / 6
    return x + h * moved, latest


def _slope(denoise, x, at):
    """eps at the start of a step; refuses runs that begin inside the table."""
    if at.fresh is not None:
        raise ValueError(
            "PNDM warms up at the first levels of its table, so a run cannot start inside it; drop start, or "
            "use a multistep solver such as ipndm."
        )
    return (x - predict(denoise, x, at)) / expand(at.sigma, x)


def _eps(denoise, x, sigma):
    return (x - denoise(x, sigma)) / expand(sigma, x)


def history(x: Array, rows) -> Array:
    """(4,B,...) zeros: no step weighs them before they are filled."""
    del rows
    return jnp.zeros((4, *x.shape), x.dtype)


def _plan(sigmas: np.ndarray, name: str, warm_up: tuple[int, ...]) -> tuple[int, ...]:
    """Calls of each step: the warm-up's, then one."""
    steps = len(sigmas) - 1
    if steps <= len(warm_up) and sigmas[-1] == 0:
        raise ValueError(
            f"{name} evaluates at the ends of its first {len(warm_up)} steps, so none may lead to sigma 0; got "
            f"{steps} steps onto 0: use at least {len(warm_up) + 1}, or levels that end above zero."
        )
    return (warm_up + (1,) * steps)[:steps]


def _weights(steps: int, largest: int) -> np.ndarray:
    """(N,4): as many predictions as there are so far, at most `largest`."""
    return WEIGHTS[np.minimum(np.arange(steps), largest - 1)]


def _table(sigmas, name, warm_up, largest, mid, rounding):
    steps = len(sigmas) - 1
    if set(_plan(sigmas, name, warm_up)) == {4}:
        warnings.warn(
            f"{name} in {steps} steps is its Runge-Kutta warm-up only; it has multistep steps from "
            f"{len(warm_up) + 1} on.",
            stacklevel=2,
        )
    middle = np.asarray(mid(sigmas), np.float64)
    middle = middle if rounding is same else on_host(rounding, middle)
    if middle.shape not in ((steps,), (steps, 2)):
        raise ValueError(
            f"mid gives one or two levels for each of {steps} steps; got shape {middle.shape}."
        )
    reached, told = (middle, middle) if middle.ndim == 1 else middle.T
    # The network is shown the state of `reached` in its process's coordinates x / sqrt(1 + sigma^2).
    factor = np.sqrt((1 + told**2) / (1 + reached**2))
    return Row(_weights(steps, largest), reached, told, factor)


def _solver(name, warm_up, largest, mid=means, rounding=same) -> Solver:
    table = partial(
        _table, name=name, warm_up=warm_up, largest=largest, mid=mid, rounding=rounding
    )
    return Solver(step, history, table, partial(_plan, name=name, warm_up=warm_up))


def pndm(
    mid: Callable[[np.ndarray], np.ndarray] = means,
    rounding: Callable[[Array], Array] = same,
) -> Solver:
    """F-PNDM: three pseudo Runge-Kutta steps of four calls, then four-step Adams-Bashforth: N + 9 calls.

        e1 = eps(x, s),                   e2 = eps(x + (m - s) e1, m),
        e3 = eps(x + (m - s) e2, m),      e4 = eps(x + (s' - s) e3, s'),
        e = (e1 + 2 e2 + 2 e3 + e4) / 6,  later e = (55 e_i - 59 e_{i-1} + 37 e_{i-2} - 9 e_{i-3}) / 24

    e1 enters the history. With fewer than 4 steps there is the warm-up only, and a warning says so. The
    constant weights are of order 4 on levels even in sigma, of order 2 on others.

    Args:
      mid: sigmas (N+1,) -> (N,) levels m; or (N,2): the level that the first half step goes to, and the one
        that the network is told, in whose stead of m the second half step is taken. `means`, or for a discrete
        model's labels `discrete.halfway` (official) and `discrete.halfway_twice` (diffusers' scheduler with
        skip_prk_steps=False).
      rounding: of m to the levels the model was trained at, `Precond.round`.
    Raises: ValueError when run: if the warm-up would reach sigma 0, or a run begins inside the levels.
    """
    return _solver("pndm", (4, 4, 4), 4, mid, rounding)


def s_pndm() -> Solver:
    """S-PNDM: an improved Euler step, then e = (3 e_i - e_{i-1}) / 2: N + 1 calls.

    Raises: ValueError when run: if the first step would reach sigma 0, or a run begins inside the levels.
    """
    return _solver("s_pndm", (2,), 2)


def plms() -> Solver:
    """PLMS as in Stable Diffusion: an improved Euler step, then Adams-Bashforth 2, 3, 4; N + 1 calls.

    diffusers lists the first step's second label twice: it goes there, looks, and takes the step again from its
    start with the mean of both predictions, of which it keeps the first.

    Raises: ValueError when run: if the first step would reach sigma 0, or a run begins inside the levels.
    """
    return _solver("plms", (2,), 4)


class ClassicalRow(NamedTuple):
    """Numbers of one classical step, in the process's coordinates z = scale x."""

    b: Array  # (4,) weights of the latest increments
    length: Array  # () labels from the step's start to its end
    keep: Array  # () delta(e) = keep z + push e
    push: Array  # ()
    told: Array  # () level in the middle of the step
    scale: Array  # () at the step's start
    scale_mid: Array  # ()
    scale_next: Array  # ()


def fon(abar: np.ndarray) -> Solver:
    """FON, the classical fourth-order method that PNDM is compared with; on a discrete model's levels only.

    The transfer over one label is taken for a derivative, which Runge-Kutta (three steps) and Adams-Bashforth
    integrate in the process's coordinates z = sqrt(abar) x, where it is stiff:

        delta(e) = z at label t - 1, by DDIM's step from t,  less z;    z' = z + (t - t') combination of deltas

    The middle of a step is the official one, `discrete.halfway`. Not in SOLVERS: its derivative is a difference
    of the model's labels, so it does not converge with the number of steps.

    Args:
      abar: (M,) cumulated alphas, the levels of the model.
    Raises: ValueError when run: for levels that are not the model's, or a run that begins inside them.
    Source: Liu et al. 2022 (arXiv:2202.09778), the authors' code.
    """
    abar = np.asarray(abar, np.float64)
    trained = discrete.sigmas(abar)

    def table(sigmas):
        index = discrete.places(sigmas, abar)
        start, end = index[:-1], index[1:]
        scale = np.sqrt(abar)
        middle = (start + end) // 2
        return ClassicalRow(
            _weights(len(start), 4),
            (start - end).astype(np.float64),
            keep=scale[start - 1] / scale[start] - 1,
            push=scale[start - 1] * (trained[start - 1] - trained[start]),
            told=trained[middle],
            scale=scale[start],
            scale_mid=scale[middle],
            scale_next=scale[end],
        )

    return Solver(classical, history, table, partial(_plan, name="fon", warm_up=(4, 4, 4)))


def classical(denoise, latest, x, at, *, plan):
    """A step of FON: Runge-Kutta (plan 4) or Adams-Bashforth (1) on increments in the process's coordinates."""
    row = at.row
    length, keep, push, scale, scale_mid, scale_next = (
        expand(v, x)
        for v in (row.length, row.keep, row.push, row.scale, row.scale_mid, row.scale_next)
    )
    z = scale * x

    def increment(eps):
        return keep * z + push * eps

    first = increment(_slope(denoise, x, at))
    latest = jnp.concatenate([first[None], latest[:-1]])
    if plan == 1:
        moved = sum(expand(b, x) * d for b, d in zip(row.b, latest, strict=True))
    else:
        middle = (z + length / 2 * first) / scale_mid
        second = increment(_eps(denoise, middle, row.told))
        middle = (z + length / 2 * second) / scale_mid
        third = increment(_eps(denoise, middle, row.told))
        end = (z + length * third) / scale_next
        moved = (first + 2 * second + 2 * third + increment(_eps(denoise, end, at.sigma_next))) / 6
    return (z + length * moved) / scale_next, latest


SOLVERS = {"pndm": pndm, "s_pndm": s_pndm, "plms": plms}
ORDERS = {"pndm": 2, "s_pndm": 2, "plms": 2}
