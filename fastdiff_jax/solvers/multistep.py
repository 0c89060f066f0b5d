"""Multistep solvers with one network call a step: the coefficients are a table, the step is one.

    x' = a x + sum_j b_j m_{i-j},    m = x0 (target "data") or eps = (x - x0) / sigma (target "noise")

Orders, warm-up and last steps live in the rows as zeros, so a whole family compiles one network body.
"""

from collections.abc import Callable
from functools import partial
from math import factorial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.types import Array, Solver, expand


class Row(NamedTuple):
    """Coefficients of one step, or of all with a leading axis N."""

    a: Array  # () or (B,) weight of x
    b: Array  # (k,) or (k,B) weights of the k latest predictions, newest first


def multistep(
    table: Callable[[np.ndarray], Row], target: str = "data", history: int | None = None
) -> Solver:
    """The solver of a table of coefficients.

    Args:
      table: sigmas (N+1,) -> Row with a (N,) and b (N,k), host float64.
      target: what the history keeps: "data" or "noise".
      history: predictions kept, at least the table's k. Solvers with one target, one history length and
        one number of steps share an executable, at the cost of more states in memory.
    Raises: ValueError for another target, or a history shorter than the table needs.
    """
    if target not in STEPS:
        raise ValueError(f"a multistep solver predicts {' or '.join(STEPS)}; got target {target!r}.")

    def padded(sigmas):
        rows = table(sigmas)
        missing = (history or rows.b.shape[1]) - rows.b.shape[1]
        if missing < 0:
            raise ValueError(f"this solver needs a history of {rows.b.shape[1]}; got {history}.")
        return rows._replace(b=np.pad(rows.b, ((0, 0), (0, missing))))

    return Solver(STEPS[target], empty, padded)


def empty(x: Array, rows: Row) -> Array:
    """(k,B,...) zeros: rows of the first steps do not weigh them."""
    return jnp.zeros((rows.b.shape[1], *x.shape), x.dtype)


def from_data(denoise, latest, x, at, *, plan):
    """The step on a history of x0 predictions."""
    return _combine(predict(denoise, x, at), latest, x, at)


def from_noise(denoise, latest, x, at, *, plan):
    """The step on a history of eps predictions."""
    return _combine((x - predict(denoise, x, at)) / expand(at.sigma, x), latest, x, at)


def _combine(m, latest, x, at):
    latest = jnp.concatenate([m[None], latest[:-1]])
    if at.fresh is not None:
        # A run that begins inside the table has no past: with every entry equal, the row is of first order.
        latest = jnp.where(at.fresh, m, latest)
    # Not a dot product, which accelerators may run in bfloat16.
    moved = sum(expand(b, x) * m for b, m in zip(at.row.b, latest, strict=True))
    return expand(at.row.a, x) * x + moved, latest


# Module-level functions, so that two solvers of one target are equal as static arguments of jit.
STEPS = {"data": from_data, "noise": from_noise}


def euler_rows(sigmas: np.ndarray, target: str = "data") -> Row:
    """Euler's step x' = x + (sigma' - sigma) eps, which is DDIM (arXiv:2010.02502) in these coordinates."""
    if target == "noise":
        return Row(np.ones(len(sigmas) - 1), np.diff(sigmas)[:, None])
    ratio = sigmas[1:] / sigmas[:-1]
    return Row(ratio, 1 - ratio[:, None])


def euler(target: str = "data", history: int | None = None) -> Solver:
    """Euler's method on dx/dsigma = (x - x0) / sigma; the target only moves the last bits."""
    return multistep(partial(euler_rows, target=target), target, history)


class Exponentials(NamedTuple):
    """What solvers exact in lambda = -ln sigma are made of, per step (N,): h = lambda' - lambda.

    With H = -h for the target "data", h for "noise", and beta = 1 or sigma':

        phi1 = e^H - 1,    phi2 = phi1/H - 1,    phi3 = phi2/H - 1/2!,    phi4 = phi3/H - 1/3!

    A step onto zero has h = inf, where only beta phi1 has a limit: `euler_rows` hold it.
    """

    lambdas: np.ndarray  # (N+1,)
    h: np.ndarray
    signed: np.ndarray  # H
    beta: np.ndarray
    phi: np.ndarray  # (4,N)


def exponentials(sigmas: np.ndarray, target: str) -> Exponentials:
    """The `Exponentials` of levels (N+1,)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lambdas = -np.log(sigmas)
        h = np.diff(lambdas)
        signed = h if target == "noise" else -h
        phi = [np.expm1(signed)]
        for k in (1, 2, 3):
            # The recursion cancels where steps are small; there it is summed as sum_m H^(m+1) / (m+k+1)!.
            series = sum(signed ** (m + 1) / factorial(m + k + 1) for m in range(14))
            phi.append(np.where(h < 0.5, series, phi[-1] / signed - 1 / factorial(k)))
    beta = sigmas[1:] if target == "noise" else np.ones_like(h)
    return Exponentials(lambdas, h, signed, beta, np.stack(phi))


def dpmpp_rows(
    sigmas: np.ndarray, order: int, lower_order_final: bool = True, target: str = "data"
) -> Row:
    """Coefficients of DPM-Solver++ multistep, in the terms of `Exponentials`.

        x' = a x - beta (phi1 m0 + phi2 D1 + phi3 D2),    a = sigma'/sigma (data) or 1 (noise)

    with divided differences of the predictions, over r0 = h_{i-1}/h and r1 = h_{i-2}/h:

        D10 = (m0 - m1)/r0,  D11 = (m1 - m2)/r1
        order 2: D1 = D10, phi1/2 in place of phi2;  D2 = 0
        order 3: D1 = D10 + r0/(r0 + r1) (D10 - D11),  D2 = (D10 - D11)/(r0 + r1)

    A step onto zero has h = inf and order 1: x' = m0 (data). The third-order form is the authors', which
    published figures are of; its D2 is half of what a third-order method needs, so it converges at order 2.

    Source: Lu et al. 2022 (arXiv:2211.01095), Alg. 2 and appendix; noise form arXiv:2206.00927.
    """
    a, first = euler_rows(sigmas, target)
    _, h, _, beta, phi = exponentials(sigmas, target)
    b = np.pad(first, ((0, 0), (0, order - 1)))
    m = np.eye(3)[:, :order]
    for i, k in enumerate(orders(sigmas, order, lower_order_final)):
        d10 = (m[0] - m[1]) * h[i] / h[i - 1] if k > 1 else 0.0
        if k == 2:
            b[i] -= beta[i] * phi[0, i] / 2 * d10
        elif k == 3:
            r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
            d11 = (m[1] - m[2]) / r1
            b[i] -= beta[i] * phi[1, i] * (d10 + r0 / (r0 + r1) * (d10 - d11))
            b[i] -= beta[i] * phi[2, i] * (d10 - d11) / (r0 + r1)
    return Row(a, b)


def orders(sigmas: np.ndarray, order: int, lower_order_final: bool) -> list[int]:
    """Order of each step: warm-up, then `order`, falling to 1 at the end if asked, 1 onto zero always."""
    steps = len(sigmas) - 1

    def of(k):
        # k < order first, as the reference: a run shorter than its order does not fall at the end.
        falls = lower_order_final and k >= order
        return 1 if sigmas[k] == 0 else min(order, k, steps + 1 - k if falls else k)

    return [of(k) for k in range(1, steps + 1)]


def checked(order: int, highest: int, method: str) -> int:
    """`order`, if `method` has it. Raises: ValueError otherwise."""
    if order not in range(1, highest + 1):
        raise ValueError(f"{method} has orders 1 to {highest}; got {order}.")
    return order


def dpmpp(
    order: int, lower_order_final: bool = True, target: str = "data", history: int | None = None
) -> Solver:
    """DPM-Solver++ of order 1, 2 or 3 (arXiv:2211.01095), multistep.

    Args:
      lower_order_final: fall to order 1 over the last steps, which is steadier with few of them.
      target: "data", as published for pixels with `threshold`; "noise", as published for latents.
    Raises: ValueError for another order or target.
    """
    checked(order, 3, "DPM-Solver++")
    rows = partial(
        dpmpp_rows, order=order, lower_order_final=lower_order_final, target=target
    )
    return multistep(rows, target, history)


SOLVERS = {
    "euler": euler,
    "ddim": euler,
    "dpmpp_1m": partial(dpmpp, 1),
    "dpmpp_2m": partial(dpmpp, 2),
    "dpmpp_3m": partial(dpmpp, 3),
}
# Orders of convergence, by measurement as well as on paper.
ORDERS = {"euler": 1, "ddim": 1, "dpmpp_1m": 1, "dpmpp_2m": 2, "dpmpp_3m": 2}
