"""Adams-Bashforth methods on dx/dsigma = eps: one network call a step, past slopes extrapolated."""

from collections.abc import Callable
from functools import partial

import numpy as np

from fastdiff_jax.solvers.multistep import Row, checked, multistep
from fastdiff_jax.types import Solver

Quadrature = Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> points (P,), weights (P,)
UNIFORM = tuple(
    np.array(weights) / divisor
    for weights, divisor in (
        ([1], 1),
        ([3, -1], 2),
        ([23, -16, 5], 12),
        ([55, -59, 37, -9], 24),
    )
)


def ipndm_rows(sigmas: np.ndarray, order: int) -> Row:
    """x' = x + (sigma' - sigma) sum_j w_j eps_{i-j}, with the weights w of equal steps on any levels.

    Source: Zhang & Chen 2023 (arXiv:2204.13902), after Liu et al. 2022 (arXiv:2202.09778).
    """
    b = np.zeros((len(sigmas) - 1, order))
    for i, h in enumerate(np.diff(sigmas)):
        weights = UNIFORM[min(order, i + 1) - 1]
        b[i, : len(weights)] = h * weights
    return Row(np.ones(len(b)), b)


def ipndm(order: int, history: int | None = None) -> Solver:
    """iPNDM of order 1 to 4: order 1 (Euler) at the first step, one more at each, up to `order`.

    On uneven levels its weights are not those of an Adams-Bashforth method, so it converges at order 2 at
    most; with few steps it is none the worse for it. For any number of steps.

    Raises: ValueError for another order.
    """
    return multistep(partial(ipndm_rows, order=checked(order, 4, "iPNDM")), "noise", history)


def lagrange(points: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """(P,k) values at `points` (P,) of the k polynomials that are one at their own node, zero at the others."""
    own = np.eye(len(nodes), dtype=bool)
    gaps = np.where(own, 1.0, nodes[:, None] - nodes)
    return np.prod(np.where(own, 1.0, (points[:, None, None] - nodes) / gaps), axis=2)


def integrated_rows(
    sigmas: np.ndarray, order: int, clock: np.ndarray, quadrature: Quadrature
) -> Row:
    """x' = x + sum_j b_j eps_{i-j}, eps taken for the polynomial in a clock through its latest values.

        b_j = integral of l_j(clock) dsigma over the step,    l_j: `lagrange` on the clock's latest k readings

    with k = 1 (Euler, whatever the clock) at the first step and one more at each, up to `order`.

    Args:
      clock: (N+1,) its readings at `sigmas`, monotone.
      quadrature: step i -> readings within the step and the weights that make a sum over them an integral
        over sigma.
    """
    b = np.zeros((len(sigmas) - 1, order))
    b[:, 0] = np.diff(sigmas)
    for i in range(1, len(b)):
        k = min(order, i + 1)
        if k > 1:
            points, weights = quadrature(i)
            b[i, :k] = weights @ lagrange(points, clock[i + 1 - k : i + 1][::-1])
    return Row(np.ones(len(b)), b)


def gauss(low: float, high: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and weights (count,) from `low` to `high`: exact up to degree 2 count - 1."""
    points, weights = np.polynomial.legendre.leggauss(count)
    half = (high - low) / 2
    return low + half * (1 + points), half * weights


def exact_rows(sigmas: np.ndarray, order: int) -> Row:
    """Adams-Bashforth on uneven levels: `integrated_rows` with sigma itself as the clock.

    Exact where eps is a polynomial in sigma of degree below `order`, once warmed up.
    """
    # `order` points integrate degree order - 1 exactly, and more.
    return integrated_rows(sigmas, order, sigmas, lambda i: gauss(sigmas[i], sigmas[i + 1], order))


def published_rows(sigmas: np.ndarray, order: int) -> Row:
    """The weights that the published figures of iPNDM_v were made with; orders 3 and 4 are not Adams-Bashforth.

    With h the step and a, b, c the ones before it, the exact third- and fourth-order parts are

        T3 = (1 - h/(3 (h+a))) h (h+a)/(a (a+b)) / 2
        T4 = ((1 - h/(3 (h+a)))/2 - (1 - h/(2 (h+a))) h/(6 (h+a+b))) h (h+a) (h+a+b)/(a (a+b) (a+b+c))

    The code behind the figures multiplies only the subtracted fraction of T3, has a plus in T4, and a/b in
    place of b/c in the oldest weight, so that the fourth-order weights do not sum to h on uneven levels.

    Source: github.com/zju-pi/diff-sampler, whose tables are of these weights.
    """
    steps, b = np.diff(sigmas), np.zeros((len(sigmas) - 1, order))
    for i, h in enumerate(steps):
        past = steps[max(0, i - order + 1) : i][::-1]
        b[i] = h * _published(h, past)[:order]
    return Row(np.ones(len(b)), b)


def _published(h, past):
    """The four weights over h after steps `past`, newest first, one fewer than the order."""
    if not len(past):
        return np.array([1.0, 0.0, 0.0, 0.0])
    a = past[0]
    total = np.array([1 + h / (2 * a), -h / (2 * a), 0.0, 0.0])
    if len(past) > 1:
        b = past[1]
        third = (1 - h / (3 * (h + a)) * (h * (h + a)) / (a * (a + b))) / 2
        total += third * np.array([1, -(1 + a / b), a / b, 0])
    if len(past) > 2:
        c = past[2]
        inner = (1 - h / (3 * (h + a))) / 2 + (1 - h / (2 * (h + a))) * h / (6 * (h + a + b))
        fourth = inner * h * (h + a) * (h + a + b) / (a * (a + b) * (a + b + c))
        q = a * (a + b) / (b * (b + c))
        total += fourth * np.array([1, -(1 + a / b + q), a / b + q * (1 + b / c), -q * a / b])
    return total


WEIGHTS = {"exact": exact_rows, "published": published_rows}


def ipndm_v(order: int, weights: str = "exact", history: int | None = None) -> Solver:
    """Variable-step Adams-Bashforth in sigma of order 1 to 4; for any number of steps.

    Args:
      weights: "exact", which are also DEIS-rhoAB's; "published" repeats the mistakes that the published
        figures of iPNDM_v were made with (`published_rows`), for comparison with them.
    Raises: ValueError for another order or other weights.
    """
    checked(order, 4, "iPNDM_v")
    if weights not in WEIGHTS:
        raise ValueError(f"iPNDM_v has weights {' or '.join(WEIGHTS)}; got {weights!r}.")
    return multistep(partial(WEIGHTS[weights], order=order), "noise", history)


SOLVERS = {f"ipndm_{order}": partial(ipndm, order) for order in (1, 2, 3, 4)} | {
    f"ipndm_v_{order}": partial(ipndm_v, order) for order in (2, 3, 4)
}
# As measured: uneven levels hold iPNDM at 2; the first steps, of orders 1 and 2, hold what has order 4 at 3.
ORDERS = {
    "ipndm_1": 1,
    "ipndm_2": 2,
    "ipndm_3": 2,
    "ipndm_4": 2,
    "ipndm_v_2": 2,
    "ipndm_v_3": 3,
    "ipndm_v_4": 3,
}
