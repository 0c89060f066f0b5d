"""AMED: two network calls a step, the second where a small predictor puts it (arXiv:2312.00094).

A step from t to t' first goes to t_m, calls the network there, and goes on to t':

    t_m = t'^r t^(1-r),    d = (x - D(x; t)) / t,    d_m = (x_m - D(x_m; a t_m)) / t_m

Per sample, (r, c, a) = nodes(u, t, t') are chosen by what the first call saw, its features u; c scales the
last slope. The division is by t_m, not by a t_m. Five ways to go:

    amed    x_m = x + (t_m - t) d,    x' = x + c (t' - t) d_m
    dpm     x_m = x + (t_m - t) d,    x' = x + c (t' - t) (d_m / (2r) + (1 - 1/(2r)) d)
    euler   two Euler steps; ipndm, dpmpp: two multistep ones on one history. The increment of the second is
            times c.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fastdiff_jax.solvers.adams import UNIFORM
from fastdiff_jax.solvers.multistep import orders
from fastdiff_jax.types import Array, Solver, expand

FAR = 1e3  # distance in lambda of predictions that are not there yet; their weight is zero


class Nodes(NamedTuple):
    """What a predictor decides on, per sample."""

    share: Array  # r (B,), in (0, 1): of the way to t' in log t, where t_m lies
    slope: Array | float = 1.0  # c (B,)
    level: Array | float = 1.0  # a (B,): the network at t_m is told a t_m


class Past(NamedTuple):
    """The k latest predictions, newest first; kept across both halves of every step."""

    values: Array  # (k,B,...) eps, or x0
    lambdas: Array  # (k,B) -ln t that they were made at


def amed(
    kind: str,
    nodes: Callable[[Array, Array, Array], Nodes],
    width: int,
    order: int | None = None,
    target: str = "data",
) -> Solver:
    """The solver of a predictor, on denoisers that also give features: (x, sigma) -> (x0, u (B,width)).

    Args:
      kind: amed, dpm, euler, ipndm or dpmpp.
      nodes: (u (B,width), t (B,), t' (B,)) -> Nodes, bound to its weights; u is zeros where x0 was known
        without a call (AFS).
      order: of ipndm (1 to 4, by default 4) and dpmpp (1 to 3, by default 3). It grows by one a half step;
        that of dpmpp falls to 1 at the end.
      target: what dpmpp predicts, "data" or "noise".
    Raises: ValueError for another kind, order or target; when levels end at zero, where t_m would be zero.
    """
    if kind not in KINDS:
        raise ValueError(f"AMED has no kind {kind!r}; known: {', '.join(KINDS)}.")
    highest = HIGHEST.get(kind)
    if order is not None and (highest is None or order not in range(1, highest + 1)):
        known = f"is 1 to {highest}" if highest else "cannot be chosen; leave it out"
        raise ValueError(f"the order of AMED {kind} {known}; got {order}.")
    if target not in ("data", "noise") or (target == "noise" and kind != "dpmpp"):
        raise ValueError(f"AMED's target is data, or noise for dpmpp; got {target!r} for {kind}.")
    order = order or highest or 1
    if kind in SLOPES:
        return Solver(partial(single, SLOPES[kind], nodes, width), plan=two_calls)
    if kind == "dpmpp":
        step = partial(halves, partial(exponential, target), target, nodes, width)
        table = falling
    else:
        step, table = partial(halves, even, "noise", nodes, width), growing
    return Solver(step, empty, partial(table, order=order), two_calls)


def two_calls(sigmas: np.ndarray) -> tuple[int, ...]:
    """The plan. Raises: ValueError if the last level is zero."""
    if sigmas[-1] <= 0:
        raise ValueError(
            f"AMED places nodes between levels on a log scale, so none is zero; got {sigmas[-1]:g} last: "
            "use a schedule with zero=False."
        )
    return (2,) * (len(sigmas) - 1)


def first(nodes, width, denoise, x, at):
    """(x0, Nodes, t, t_m, t') of a step: its first call and what follows from it; levels are (B,)."""
    if at.known is None:
        x0, features = denoise(x, at.sigma)
    else:
        x0, features = at.known, jnp.zeros((len(x), width), x.dtype)
    t, end = (jnp.broadcast_to(sigma, x.shape[:1]) for sigma in (at.sigma, at.sigma_next))
    chosen = nodes(features, t, end)
    return x0, chosen, t, end**chosen.share * t ** (1 - chosen.share), end


def single(mean, nodes, width, denoise, _, x, at, *, plan):
    """A step along `mean` of both slopes, from its start."""
    x0, chosen, t, middle, end = first(nodes, width, denoise, x, at)
    slope = (x - x0) / expand(t, x)
    inner = x + expand(middle - t, x) * slope
    found, _ = denoise(inner, chosen.level * middle)
    second = (inner - found) / expand(middle, x)
    return x + expand(chosen.slope * (end - t), x) * mean(slope, second, expand(chosen.share, x)), None


def inner_slope(slope, second, share):
    """The slope at t_m alone, as the midpoint rule."""
    return second


def both_slopes(slope, second, share):
    """Weights that make the step of second order wherever t_m lies (DPM-Solver-2, arXiv:2206.00927)."""
    return second / (2 * share) + (1 - 1 / (2 * share)) * slope


def halves(advance, target, nodes, width, denoise, past, x, at, *, plan):
    """Two steps of a multistep solver, over t_m: `advance` gives the weight of x, and what is added."""
    x0, chosen, t, middle, end = first(nodes, width, denoise, x, at)
    past = pushed(past, x0 if target == "data" else (x - x0) / expand(t, x), t)
    if at.fresh is not None:  # a run that begins inside the table: as if all before had been the same
        past = past._replace(values=jnp.where(at.fresh, past.values[0], past.values))
    kept, moved = advance(past, t, middle, at.row[0])
    x = kept * x + moved
    x0, _ = denoise(x, chosen.level * middle)
    past = pushed(past, x0 if target == "data" else (x - x0) / expand(middle, x), middle)
    kept, moved = advance(past, middle, end, at.row[1])
    return kept * x + expand(chosen.slope, x) * moved, past


def empty(x: Array, rows: Array) -> Past:
    """Zeros at levels that differ, so that quotients of absent predictions are finite."""
    order = rows.shape[-1]
    lambdas = -FAR * jnp.arange(1, order + 1, dtype=x.dtype)
    return Past(jnp.zeros((order, *x.shape), x.dtype), jnp.tile(lambdas[:, None], (1, len(x))))


def pushed(past: Past, value: Array, level: Array) -> Past:
    """`past` with the newest prediction in place of the oldest."""
    latest = (value, -jnp.log(level))
    return Past(*(jnp.concatenate([new[None], old[:-1]]) for new, old in zip(latest, past, strict=True)))


def growing(sigmas: np.ndarray, order: int) -> np.ndarray:
    """(N,2,k) iPNDM's weights of the half steps."""
    rows = np.zeros((2 * len(sigmas) - 2, order))
    for half, row in enumerate(rows):
        weights = UNIFORM[min(half + 1, order) - 1]
        row[: len(weights)] = weights
    return rows.reshape(-1, 2, order)


def even(past: Past, start: Array, end: Array, weights: Array) -> tuple[float, Array]:
    """iPNDM's update: x' = x + (t' - t) sum_j w_j d_j."""
    mean = sum(weight * value for weight, value in zip(weights, past.values, strict=True))
    return 1.0, expand(end - start, mean) * mean


def falling(sigmas: np.ndarray, order: int) -> np.ndarray:
    """(N,2,q) one-hot orders of DPM-Solver++ over the 2N half steps, falling to 1 at the end."""
    half_steps = orders(np.ones(2 * len(sigmas) - 1), order, lower_order_final=True)
    return np.eye(order)[np.array(half_steps) - 1].reshape(-1, 2, order)


def exponential(target, past: Past, start: Array, end: Array, chosen: Array) -> tuple[Array, Array]:
    """DPM-Solver++'s multistep update between levels per sample; lambda = -ln t, h = lambda' - lambda.

        x' = a x - beta M,    (a, beta, H) = (t'/t, 1, -h) for data, (1, t', h) for noise
        M = phi1 m0                       order 1
            phi1 (m0 + D10/2)             order 2
            phi1 m0 + phi2 D1 + phi3 D2   order 3

    with phi, D10, D1 and D2 as `multistep.dpmpp_rows`; here lambda steps are per sample, (B,).

    Args:
      chosen: (q,) one at the step's order, else zero.
    Source: Lu et al. 2022 (arXiv:2211.01095), Alg. 2 and appendix.
    """
    m, lambdas = past
    h = jnp.log(start / end)
    phi1, phi2, phi3 = (expand(phi, m[0]) for phi in phis(h if target == "noise" else -h))
    mean = phi1 * m[0]
    if len(m) > 1:
        before = lambdas[0] - lambdas[1]
        d10 = (m[0] - m[1]) * expand(h / before, m[0])
        mean += chosen[1] * phi1 / 2 * d10
    if len(m) > 2:
        reach = lambdas[0] - lambdas[2]
        bend = d10 - (m[1] - m[2]) * expand(h / (lambdas[1] - lambdas[2]), m[0])
        d1, d2 = d10 + expand(before / reach, m[0]) * bend, expand(h / reach, m[0]) * bend
        mean += chosen[2] * (phi2 * d1 + phi3 * d2)
    if target == "noise":
        return 1.0, -expand(end, mean) * mean
    return expand(end / start, mean), -mean


def phis(z: Array) -> tuple[Array, Array, Array]:
    """phi1 = e^z - 1, phi2 = phi1/z - 1, phi3 = phi2/z - 1/2; by the series where the recursion cancels."""
    near = jnp.abs(z) < 1
    small, large = jnp.where(near, z, 0.0), jnp.where(near, 1.0, z)
    first = jnp.expm1(large) / large - 1
    third = sum(small ** (n + 1) / float(math.factorial(n + 3)) for n in range(17))
    second = jnp.where(near, small * (third + 0.5), first)
    return jnp.expm1(z), second, jnp.where(near, third, first / large - 0.5)


SLOPES = {"amed": inner_slope, "dpm": both_slopes}
HIGHEST = {"ipndm": 4, "dpmpp": 3}  # order that there is
KINDS = (*SLOPES, "euler", *HIGHEST)
