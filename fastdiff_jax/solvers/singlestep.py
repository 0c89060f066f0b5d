"""Single-step solvers with several network calls a step: the stages are a table, the step is one.

    x_j = a_j x + sum_{l<=j} b_jl m_l,    m = x0 (target "data") or eps = (x - x0) / sigma (target "noise")

m_0 is predicted at the start of the step, m_j at (x_{j-1}, level_{j-1}), and the last x_j is the step's end.
The plan holds the stages of each step; a step onto sigma = 0 has one, which makes x' = x0.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.types import Array, Solver, expand


class Row(NamedTuple):
    """Coefficients of one step of at most S stages, or of all with a leading axis N."""

    levels: Array  # (S-1,) noise levels of the calls after the first
    a: Array  # (S,) weights of x
    b: Array  # (S,S) weights of the predictions


# A step from one level to a lower one: (sigma, sigma') -> levels, a, b as nested sequences of its own size.
Formula = Callable[[float, float], tuple]


def from_data(denoise, _, x, at, *, plan):
    """The step on x0 predictions."""
    return _stages(lambda x0, x, sigma: x0, denoise, x, at, plan), None


def from_noise(denoise, _, x, at, *, plan):
    """The step on eps predictions."""
    return _stages(lambda x0, x, sigma: (x - x0) / expand(sigma, x), denoise, x, at, plan), None


def _stages(target, denoise, x, at, stages):
    found = [target(predict(denoise, x, at), x, at.sigma)]
    for j in range(stages):
        # Not a dot product, which accelerators may run in bfloat16.
        moved = sum(expand(at.row.b[j, i], x) * m for i, m in enumerate(found))
        point = expand(at.row.a[j], x) * x + moved
        if j < stages - 1:
            level = at.row.levels[j]
            found.append(target(denoise(point, level), point, level))
    return point


# Module-level functions, so that two solvers of one target are equal as static arguments of jit.
STEPS = {"data": from_data, "noise": from_noise}


def singlestep(
    formulas: Mapping[int, Formula],
    plan: Callable[[np.ndarray], tuple[int, ...]],
    target: str = "noise",
) -> Solver:
    """The solver that takes each step by the formula of its number of stages.

    Solvers with one target, one largest number of stages and one plan share an executable.
    """
    return Solver(
        STEPS[target],
        table=lambda sigmas: tabled(formulas, plan(sigmas), sigmas[:-1], sigmas[1:]),
        plan=plan,
    )


def tabled(formulas: Mapping[int, Formula], plan, high: np.ndarray, low: np.ndarray) -> Row:
    """The table (N,...) of steps from levels high (N,) to low (N,), padded to the largest formula."""
    width = max(formulas)
    levels, a = np.zeros((len(plan), width - 1)), np.zeros((len(plan), width))
    b = np.zeros((len(plan), width, width))
    for i, stages in enumerate(plan):
        inner, weights, predicted = formulas[stages](high[i], low[i])
        levels[i, : stages - 1], a[i, :stages] = inner, weights
        for j, row in enumerate(predicted):
            b[i, j, : len(row)] = row
    return Row(levels, a, b)


def calls(sigmas: np.ndarray, stages: int, lower_order_final: bool = False) -> tuple[int, ...]:
    """The plan of one formula: its stages at every step, but one onto sigma = 0, where nothing is evaluated.

    Args:
      lower_order_final: the last step has one stage, so is Euler's, wherever it ends.
    """
    single = [sigma == 0 for sigma in sigmas[1:]]
    single[-1] |= lower_order_final
    return tuple(1 if one else stages for one in single)


def euler(sigma: float, to: float) -> tuple:
    """x' = x + (sigma' - sigma) eps."""
    return [], [1], [[to - sigma]]


def euler_data(sigma: float, to: float) -> tuple:
    """Euler's step with x0 in place of eps."""
    return [], [to / sigma], [[1 - to / sigma]]


class Tableau(NamedTuple):
    """Butcher's: the points of an explicit method from its earlier slopes, and the weights of all slopes."""

    points: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS = {
    "3kutta": Tableau(((1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6)),
    "3heun": Tableau(((1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "3ral": Tableau(((1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "3vdh": Tableau(((8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0, 3 / 4)),
    "3ssprk": Tableau(((1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "4rk": Tableau(((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def runge_kutta(sigma: float, to: float, tableau: Tableau) -> tuple:
    """The classical method of a tableau on dx/dsigma = eps."""
    h = to - sigma
    rows = [h * np.array(row) for row in (*tableau.points, tableau.weights)]
    return [sigma + row.sum() for row in rows[:-1]], [1] * len(rows), rows


def rhork(name: str) -> Solver:
    """DEIS-rhoRK: a classical Runge-Kutta method in sigma, of a tableau in TABLEAUS.

    The paper's first two, 1euler and 2heun, are the solvers `euler` and `heun`.

    Raises: ValueError for another tableau.
    Source: Zhang and Chen 2023 (arXiv:2204.13902), section 4.
    """
    if name not in TABLEAUS:
        raise ValueError(f"rhoRK has no tableau {name!r}; known: {', '.join(TABLEAUS)}.")
    tableau = TABLEAUS[name]
    stages = len(tableau.weights)
    return singlestep(
        {1: euler, stages: partial(runge_kutta, tableau=tableau)}, partial(calls, stages=stages)
    )


def second(sigma: float, to: float, r: float) -> tuple:
    """DPM-Solver-2's step, its inner level at the share r of the way in log sigma."""
    middle = to**r * sigma ** (1 - r)
    late = 1 / (2 * r)
    h = to - sigma
    return [middle], [1, 1], [[middle - sigma], [h * (1 - late), h * late]]


def third(sigma: float, to: float, r1: float = 1 / 3, r2: float = 2 / 3) -> tuple:
    """DPM-Solver-3's step: h = ln(sigma / sigma'), inner levels sigma e^(-r1 h) and sigma e^(-r2 h).

        u1 = x + (s1 - sigma) eps,    D1 = eps(u1) - eps,    D2 = eps(u2) - eps
        u2 = x + (s2 - sigma) eps - s2 (r2 / r1) ((e^(r2 h) - 1) / (r2 h) - 1) D1
        x' = x + (sigma' - sigma) eps - (sigma' / r2) ((e^h - 1) / h - 1) D2
    """
    h = np.log(sigma / to)
    s1, s2 = sigma * np.exp(-r1 * h), sigma * np.exp(-r2 * h)
    slope1 = -s2 * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1)
    slope2 = -to / r2 * (np.expm1(h) / h - 1)
    rows = [[s1 - sigma], [s2 - sigma - slope1, slope1], [to - sigma - slope2, 0, slope2]]
    return [s1, s2], [1, 1, 1], rows


def second_data(sigma: float, to: float, r: float) -> tuple:
    """DPM-Solver++(2S)'s step, its inner level at the share r of the way in log sigma."""
    middle, late = to**r * sigma ** (1 - r), 1 / (2 * r)
    gain = 1 - to / sigma
    rows = [[1 - middle / sigma], [gain * (1 - late), gain * late]]
    return [middle], [middle / sigma, to / sigma], rows


def third_data(sigma: float, to: float) -> tuple:
    """DPM-Solver++(3S)'s step: h = ln(sigma / sigma'), inner levels sigma e^(-h/3) and sigma e^(-2h/3).

        u1 = (s1/sigma) x + (1 - s1/sigma) x0,    D1 = x0(u1) - x0,    D2 = x0(u2) - x0
        u2 = (s2/sigma) x + (1 - s2/sigma) x0 + 2 ((e^(-2h/3) - 1) / (2h/3) + 1) D1
        x' = (sigma'/sigma) x + (1 - sigma'/sigma) x0 + 3/2 ((e^(-h) - 1) / h + 1) D2
    """
    h = np.log(sigma / to)
    s1, s2 = sigma * np.exp(-h / 3), sigma * np.exp(-2 * h / 3)
    slope1 = 2 * (np.expm1(-2 * h / 3) / (2 * h / 3) + 1)
    slope2 = 3 / 2 * (np.expm1(-h) / h + 1)
    gains = [-np.expm1(-share * h) for share in (1 / 3, 2 / 3, 1)]
    rows = [[gains[0]], [gains[1] - slope1, slope1], [gains[2] - slope2, 0, slope2]]
    return [s1, s2], [s1 / sigma, s2 / sigma, to / sigma], rows


def dpm_2(r: float = 0.5, lower_order_final: bool = False) -> Solver:
    """DPM-Solver-2, two calls a step, one onto sigma = 0; also known as DPM-2 and DPM-Solver-2S.

        t_m = t'^r t^(1-r),    x_m = x + (t_m - t) eps,    x' = x + (t' - t) (eps_m / (2r) + (1 - 1/(2r)) eps)

    Args:
      r: in (0, 1]: where the second call lies in log sigma; 1/2 does without the first slope.
      lower_order_final: an Euler step at the end, wherever that is, as in the Sampler Scheduler's segments.
    Raises: ValueError for another r.
    Source: Lu et al. 2022 (arXiv:2206.00927), Alg. 1 and, for other r, its appendix.
    """
    formulas = {1: euler, 2: partial(second, r=_share(r))}
    return singlestep(formulas, partial(calls, stages=2, lower_order_final=lower_order_final))


def dpmpp_2s(r: float = 0.5) -> Solver:
    """DPM-Solver++(2S): two calls a step, one onto sigma = 0; exact in log sigma, in data prediction.

        x_m = (t_m/t) x + (1 - t_m/t) x0,    x' = (t'/t) x + (1 - t'/t) (x0_m / (2r) + (1 - 1/(2r)) x0)

    Args:
      r: in (0, 1]: t_m = t'^r t^(1-r).
    Raises: ValueError for another r.
    Source: Lu et al. 2022 (arXiv:2211.01095), Alg. 1.
    """
    formulas = {1: euler_data, 2: partial(second_data, r=_share(r))}
    return singlestep(formulas, partial(calls, stages=2), "data")


def _share(r):
    if not 0 < r <= 1:
        raise ValueError(f"r is the share of a step at which it looks again, in (0, 1]; got {r}.")
    return r


def fast_plan(sigmas: np.ndarray, nfe: int | None) -> tuple[int, ...]:
    """Stages of each step of `dpm_solver_fast`."""
    zero = sigmas[-1] == 0
    stages = calls(sigmas, 3)
    if nfe is not None:
        thirds, rest = divmod(nfe, 3)
        if rest == 0:
            asked = (3,) * (thirds - 1) + (2, 1)
        elif rest == 1:
            asked = (3,) * thirds + (1,)
        elif not zero:
            asked = (3,) * thirds + (2,)
        else:  # The paper's last step, of two calls, can make only one onto zero.
            asked = (3,) * (thirds - 1) + (2, 2, 1) if thirds else (1, 1)
        stages = asked if len(asked) == len(stages) else stages
    return stages


def dpm_solver_fast(nfe: int | None = None) -> Solver:
    """DPM-Solver-fast: steps of order 3 as long as the calls last, then of order 2 and 1.

    `nfe` calls make nfe // 3 + 1 steps of orders

        3, ..., 3, 2, 1  if 3 divides nfe,    3, ..., 3, 1  if 1 is left,    3, ..., 3, 2  if 2 are left

    and, on levels that end at zero, 3, ..., 3, 2, 2, 1 in the last case. Any other number of steps is of
    order 3 throughout, which is DPM-Solver-3S; so is nfe=None.

    Raises: ValueError for nfe < 1.
    Source: Lu et al. 2022 (arXiv:2206.00927), Alg. 1 and 2; the mix of orders is in its appendix.
    """
    if nfe is not None and nfe < 1:
        raise ValueError(f"dpm_solver_fast makes at least one network call; got nfe {nfe}.")
    formulas = {1: euler, 2: partial(second, r=0.5), 3: third}
    return singlestep(formulas, partial(fast_plan, nfe=nfe))


def dpm_solver_3s() -> Solver:
    """DPM-Solver-3S: three calls a step, one onto sigma = 0 (arXiv:2206.00927, Alg. 2)."""
    return dpm_solver_fast()


def dpmpp_3s(nfe: int | None = None) -> Solver:
    """DPM-Solver++(3S): steps of order 3 as long as the calls last, in data prediction; one call onto zero.

    Args:
      nfe: as `dpm_solver_fast`, whose plan this is; None: of order 3 throughout.
    Raises: ValueError for nfe < 1.
    Source: Lu et al. 2022 (arXiv:2211.01095), appendix; the plan of arXiv:2206.00927, section 3.4.
    """
    if nfe is not None and nfe < 1:
        raise ValueError(f"dpmpp_3s makes at least one network call; got nfe {nfe}.")
    formulas = {1: euler_data, 2: partial(second_data, r=0.5), 3: third_data}
    return singlestep(formulas, partial(fast_plan, nfe=nfe), "data")


SOLVERS = {
    "dpm_2": dpm_2,
    "dpm_solver_2s": dpm_2,
    "dpm_solver_3s": dpm_solver_3s,
    "dpm_solver_fast": dpm_solver_fast,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_3s": dpmpp_3s,
} | {f"rhork_{name}": partial(rhork, name) for name in TABLEAUS}
ORDERS = {
    "dpm_2": 2,
    "dpm_solver_2s": 2,
    "dpm_solver_3s": 3,
    "dpm_solver_fast": 3,
    "dpmpp_2s": 2,
    "dpmpp_3s": 3,
} | {f"rhork_{name}": int(name[0]) for name in TABLEAUS}
