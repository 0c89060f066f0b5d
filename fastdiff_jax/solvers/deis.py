"""DEIS, exponential integrators with polynomial extrapolation (Zhang & Chen 2023, arXiv:2204.13902).

In these coordinates the linear part of the flow is gone, and what is left is dx/dsigma = eps: the variants
differ in the clock in which past eps are extrapolated. tAB takes the time of a variance preserving process
with linear beta, rhoAB sigma itself, which makes it variable-step Adams-Bashforth.
"""

from functools import partial

import numpy as np

from fastdiff_jax.solvers import adams, schedules
from fastdiff_jax.solvers.multistep import Row, checked, multistep
from fastdiff_jax.types import Solver

GAUSS_POINTS = 64  # over a step across the whole range still 1e-13 with usual betas, 1e-9 with any
PUBLISHED_POINTS = 10_000
RHOAB_STALE = 4  # steps of the released rhoAB code that have weights of their own
# The clock of the published tables, whatever range they sampled.
BETA_D, BETA_MIN = schedules.vp_betas(0.002, 80.0)


def tab_rows(
    sigmas: np.ndarray,
    order: int,
    beta_d: float = BETA_D,
    beta_min: float = BETA_MIN,
    quadrature: str = "exact",
) -> Row:
    """tAB: `adams.integrated_rows` with the clock tau of sigma^2 = exp(beta_d tau^2/2 + beta_min tau) - 1.

    With g = 2 |beta_min| / beta_d and v = tau, or tau - g if beta_min is negative, the exponent is
    beta_d v (v + g) / 2 either way. l_j only sees differences, so v serves as the clock. It is 0 at sigma = 0,
    where dsigma/dv is infinite, but dsigma/dw, v = w^2, is smooth: that is what is integrated.
    """
    g = 2 * abs(beta_min) / beta_d
    exponent = 2 * np.log1p(sigmas**2) / beta_d
    clock = exponent / (g / 2 + np.sqrt(g**2 / 4 + exponent))

    def slope(v):
        """dsigma/dv."""
        square = np.expm1(beta_d * v * (v + g) / 2)
        return beta_d * (2 * v + g) / 4 * (1 + square) / np.sqrt(square)

    def exact(i):
        w, weights = adams.gauss(*np.sqrt(clock[i : i + 2]), GAUSS_POINTS)
        return w**2, weights * 2 * w * slope(w**2)

    def published(i):
        # Both ends count whole, and the spacing is that of one interval more.
        v = np.linspace(clock[i], clock[i + 1], PUBLISHED_POINTS)
        return v, (clock[i + 1] - clock[i]) / PUBLISHED_POINTS * slope(v)

    if quadrature == "published" and sigmas[-1] == 0:
        raise ValueError(
            "quadrature 'published' is infinite onto sigma 0; end the levels above zero, or use 'exact'."
        )
    return adams.integrated_rows(
        sigmas, order, clock, {"exact": exact, "published": published}[quadrature]
    )


def tab(
    order: int,
    beta_d: float = BETA_D,
    beta_min: float = BETA_MIN,
    quadrature: str = "exact",
    history: int | None = None,
) -> Solver:
    """DEIS-tAB that combines 1 to 4 predictions (the paper counts past ones only: tAB3 is order 4).

    Args:
      beta_d, beta_min: of the VP process whose time is the clock; the default one spans sigmas from 0.002
        to 80, as in published tables. For levels even in time take `schedules.vp_betas` of their range.
      quadrature: of the coefficients: "exact", or "published", a sum over 10000 points that is 5e-5 off, to
        reproduce published figures.
    Raises: ValueError for another order or quadrature, or a beta that does not grow; when the levels are
      known, for quadrature "published" onto zero.
    """
    checked(order, 4, "DEIS-tAB")
    if quadrature not in ("exact", "published"):
        raise ValueError(f"DEIS-tAB has quadrature exact or published; got {quadrature!r}.")
    if not 0 < beta_d < np.inf or not np.isfinite(beta_min):
        raise ValueError(
            f"a linear beta needs a positive beta_d and a finite beta_min; got {beta_d} and {beta_min}."
        )
    rows = partial(tab_rows, order=order, beta_d=beta_d, beta_min=beta_min, quadrature=quadrature)
    return multistep(rows, "noise", history)


def stale_rows(sigmas: np.ndarray, order: int) -> Row:
    """rhoAB with the fourth step's weights at all later ones, as the code behind published figures has it."""
    rows = adams.exact_rows(sigmas, order)
    rows.b[RHOAB_STALE:] = rows.b[RHOAB_STALE - 1 : RHOAB_STALE]
    return rows


def rhoab(order: int, weights: str = "exact", history: int | None = None) -> Solver:
    """DEIS-rhoAB of order 1 to 4: variable-step Adams-Bashforth in sigma, the same as `adams.ipndm_v`.

    Args:
      weights: "exact", or "stale": order 4 as a released code computes it (`stale_rows`), for comparison.
    Raises: ValueError for another order or other weights.
    """
    checked(order, 4, "DEIS-rhoAB")
    if weights not in ("exact", "stale") or (weights == "stale" and order != 4):
        raise ValueError(
            f"DEIS-rhoAB has weights exact, or stale for order 4; got {weights!r} for order {order}."
        )
    rows = adams.exact_rows if weights == "exact" else stale_rows
    return multistep(partial(rows, order=order), "noise", history)


SOLVERS = {f"deis_tab_{order}": partial(tab, order) for order in (1, 2, 3, 4)} | {
    f"deis_rhoab_{order}": partial(rhoab, order) for order in (2, 3, 4)
}
# As measured: the first steps, of orders 1 and 2, hold what has order 4 at 3.
ORDERS = {
    "deis_tab_1": 1,
    "deis_tab_2": 2,
    "deis_tab_3": 3,
    "deis_tab_4": 3,
    "deis_rhoab_2": 2,
    "deis_rhoab_3": 3,
    "deis_rhoab_4": 3,
}
