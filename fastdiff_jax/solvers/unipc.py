"""UniPC (Zhao et al. 2023, arXiv:2302.04867): a multistep predictor and a corrector that costs no call.

The prediction at a step's end, made from the predictor's state, corrects that state and is then the newest
of the next step's history; so a step calls the network at its end, and only the first also at its start.
"""

from collections.abc import Hashable
from functools import partial
from math import factorial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.solvers.multistep import checked, empty, euler_rows, exponentials, orders
from fastdiff_jax.types import Array, Solver, expand

VARIANTS = ("bh1", "bh2")


class Row(NamedTuple):
    """Coefficients of one step, or of all with a leading axis N."""

    a: Array  # () weight of x
    b: Array  # (k,) predictor's weights of the k latest predictions, newest first
    c: Array  # (k,) corrector's
    new: Array  # () corrector's weight of the prediction at the step's end


class Entry(NamedTuple):
    """What a step does besides predicting its end."""

    first: bool  # evaluates at its start, as no step before it did
    corrects: bool  # evaluates at its end


def calls(entry: Hashable) -> int:
    """Network calls of a plan's entry."""
    return int(entry.first) + int(entry.corrects)


def from_data(denoise, latest, x, at, *, plan):
    """The step on a history of x0 predictions."""
    return _step(lambda x0, x, sigma: x0, denoise, latest, x, at, plan)


def from_noise(denoise, latest, x, at, *, plan):
    """The step on a history of eps predictions."""
    return _step(lambda x0, x, sigma: (x - x0) / expand(sigma, x), denoise, latest, x, at, plan)


def _step(target, denoise, latest, x, at, plan):
    if at.fresh is not None:
        raise ValueError(
            "UniPC knows its predictions from the step before; it cannot begin inside a table."
        )
    if plan.first:
        latest = _push(target(predict(denoise, x, at), x, at.sigma), latest)
    kept = expand(at.row.a, x) * x
    reached = kept + _weigh(at.row.b, latest)
    if not plan.corrects:
        return reached, latest
    new = target(denoise(reached, at.sigma_next), reached, at.sigma_next)
    return kept + _weigh(at.row.c, latest) + expand(at.row.new, x) * new, _push(new, latest)


def _push(m, latest):
    return jnp.concatenate([m[None], latest[:-1]])


def _weigh(weights, latest):
    # Not a dot product, which accelerators may run in bfloat16.
    return sum(expand(w, m) * m for w, m in zip(weights, latest, strict=True))


STEPS = {"data": from_data, "noise": from_noise}


def corrects(sigmas: np.ndarray, order: int) -> list[bool]:
    """Whether each step has a corrector: all but the last and one onto zero.

    A run with fewer steps than `order` corrects its last as well, as the reference, at the price of a call.
    """
    last = len(sigmas) - 1
    return [sigma > 0 and (k < last or k < order) for k, sigma in enumerate(sigmas[1:], 1)]


def plan(sigmas: np.ndarray, order: int) -> tuple[Entry, ...]:
    """The structure of a run: calls 2, 1, ..., 1, 0."""
    return tuple(Entry(i == 0, last) for i, last in enumerate(corrects(sigmas, order)))


def rows(sigmas: np.ndarray, order: int, variant: str, target: str, lower_order_final: bool) -> Row:
    """Coefficients of predictor and corrector at order p of each step, in the terms of `Exponentials`.

        r_j = (lambda_{i-j} - lambda_i)/h for j < p,  r_p = 1;    D_j = (m_{i-j} - m_i)/r_j;    D_p = m' - m_i
        predictor: a x - beta (phi1 m_i + B sum_{j<p} rhoP_j D_j)
        corrector: a x - beta (phi1 m_i + B sum_{j<=p} rhoC_j D_j)

    where B = H (bh1) or e^H - 1 (bh2), and rhoC solves sum_l r_l^(j-1) rho_l = phi_{j+1} j!/B, j = 1..p, rhoP
    its leading block of p - 1; but rhoP = 1/2 for p = 2 and rhoC = 1/2 for p = 1, as the authors take them.
    """
    a, b = euler_rows(sigmas, target)
    lambdas, h, signed, beta, phi = exponentials(sigmas, target)
    b = np.pad(b, ((0, 0), (0, order - 1)))
    c, new = b.copy(), np.zeros(len(b))
    for i, p in enumerate(orders(sigmas, order, lower_order_final)):
        if sigmas[i + 1] == 0:
            continue
        size = signed[i] if variant == "bh1" else phi[0, i]
        r = np.append((lambdas[i - p + 1 : i][::-1] - lambdas[i]) / h[i], 1.0)
        powers = np.vander(r, p, increasing=True).T
        moments = np.array([phi[j, i] * factorial(j) for j in range(1, p + 1)]) / size
        before = np.array([0.5]) if p == 2 else np.linalg.solve(powers[:-1, :-1], moments[:-1])
        after = np.array([0.5]) if p == 1 else np.linalg.solve(powers, moments)
        for weights, rho in ((b, before), (c, after)):
            differences = beta[i] * size * rho / r[: len(rho)]
            weights[i, 0] += differences.sum()
            weights[i, 1:p] -= differences[: p - 1]
        new[i] = -differences[-1]
    return Row(a, b, c, new)


def unipc(
    order: int, variant: str = "bh2", target: str = "data", lower_order_final: bool = True
) -> Solver:
    """UniPC of order 1, 2 or 3, with its corrector one order more; one call a step, none onto zero.

    Args:
      variant: "bh1" or "bh2", the scale of the correction terms; the authors' choice is bh2.
      target: what is extrapolated: "data", as published for pixels with `threshold`, or "noise".
      lower_order_final: fall to order 1 over the last steps, which is steadier with few of them.
    Raises: ValueError for another order, variant or target; in a run that begins inside its table.
    """
    checked(order, 3, "UniPC")
    if variant not in VARIANTS:
        raise ValueError(f"UniPC has variants {' and '.join(VARIANTS)}; got {variant!r}.")
    if target not in STEPS:
        raise ValueError(f"UniPC extrapolates {' or '.join(STEPS)}; got target {target!r}.")
    table = partial(
        rows, order=order, variant=variant, target=target, lower_order_final=lower_order_final
    )
    return Solver(STEPS[target], empty, table, partial(plan, order=order), calls)


SOLVERS = {f"unipc_{order}": partial(unipc, order) for order in (1, 2, 3)}
# The corrector adds an order; the first step, corrected to order 2, holds order 3 at 3.
ORDERS = {"unipc_1": 2, "unipc_2": 3, "unipc_3": 3}
