"""EDM's second-order sampler, deterministic and with churn (Karras et al. 2022, arXiv:2206.00364)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from fastdiff_jax.precond import same
from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.solvers.schedules import on_host
from fastdiff_jax.solvers.singlestep import calls
from fastdiff_jax.solvers.stochastic import noised
from fastdiff_jax.types import Array, At, Solver, expand


def trapezium(denoise, _, x, at, *, plan):
    """The mean of the slopes at both ends of a step; its own start only, if the end is zero."""
    h = expand(at.sigma_next - at.sigma, x)
    slope = (x - predict(denoise, x, at)) / expand(at.sigma, x)
    euler = x + h * slope
    if plan == 1:
        return euler, None
    back = (euler - denoise(euler, at.sigma_next)) / expand(at.sigma_next, x)
    return x + h * (slope + back) / 2, None


def heun(repeats: bool = False, lower_order_final: bool = False) -> Solver:
    """EDM's second-order step (Alg. 1): two calls, one for a step onto sigma = 0.

    Args:
      repeats: accept equal neighbouring levels, as the reference does after rounding; such steps are wasted.
      lower_order_final: an Euler step at the end, wherever that is, as in the Sampler Scheduler's segments.
    """
    plan = partial(calls, stages=2, lower_order_final=lower_order_final)
    return Solver(trapezium, plan=plan, repeats=repeats)


class Row(NamedTuple):
    """What churn does at one step."""

    hat: Array  # () level that the step is taken from
    spread: Array  # () standard deviation of the noise that leads there


class Churn(NamedTuple):
    """Noise added before each step: the settings of `heun_churn`, which see, in the same order."""

    amount: float
    low: float
    high: float
    scale: float
    rounding: Callable[[Array], Array]

    def rows(self, sigmas: np.ndarray) -> Row:
        """The (N,) hats and spreads of levels (N+1,)."""
        sigma = sigmas[:-1]
        gate = (self.low <= sigma) & (sigma <= self.high)
        gamma = np.where(gate, min(self.amount / len(sigma), np.sqrt(2) - 1), 0.0)
        hat = sigma * (1 + gamma)
        hat = hat if self.rounding is same else on_host(self.rounding, hat)
        # On the host: in the graph's precision the difference may come out negative.
        return Row(hat, np.sqrt(np.maximum(hat**2 - sigma**2, 0.0)) * self.scale)


def churn(s_churn: float, s_min: float, s_max: float, s_noise: float, rounding) -> Churn:
    """The `Churn` of EDM's settings. Raises: ValueError for negative churn or noise, and for an empty gate."""
    if s_churn < 0 or s_noise < 0:
        raise ValueError(f"s_churn and s_noise are amounts of noise; got {s_churn} and {s_noise}.")
    if s_min > s_max:
        raise ValueError(f"churn acts from s_min to s_max; got {s_min} > {s_max}.")
    return Churn(s_churn, s_min, s_max, s_noise, rounding)


def lifted(x: Array, at: At) -> tuple[Array, At]:
    """x with the noise that leads to the row's `hat`, and where the step is then.

    Raises: ValueError if x0 is known, or if the run has no noise.
    """
    if at.known is not None:
        raise ValueError("churn moves x before its first network call, so no prediction can be known.")
    return noised(x, at, "churn"), at._replace(sigma=at.row.hat)


def churned(denoise, _, x, at, *, plan):
    """Noise up to `hat`, then the deterministic step from there."""
    x, at = lifted(x, at)
    return trapezium(denoise, None, x, at, plan=plan)


def heun_churn(
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = float("inf"),
    s_noise: float = 1.0,
    rounding: Callable[[Array], Array] = same,
    lower_order_final: bool = False,
) -> Solver:
    """EDM's stochastic sampler (Alg. 2): each step first adds noise.

        gamma = min(s_churn / N, sqrt(2) - 1) where s_min <= sigma <= s_max, else 0
        hat = rounding(sigma (1 + gamma)),    x_hat = x + sqrt(hat^2 - sigma^2) s_noise z

    z is drawn at every step, also where gamma is 0, so that images do not change with the gate.

    Args:
      rounding: to the levels the model was trained at, `Precond.round`.
      lower_order_final: as `heun`.
    Raises: ValueError for negative churn or noise, and for an empty gate.
    """
    rows = churn(s_churn, s_min, s_max, s_noise, rounding).rows
    plan = partial(calls, stages=2, lower_order_final=lower_order_final)
    # Rounding may merge levels; a step between equal ones still exchanges noise here.
    return Solver(churned, table=rows, plan=plan, repeats=rounding is not same, guessed=False)


SOLVERS = {"heun": heun, "heun_churn": heun_churn}
ORDERS = {"heun": 2, "heun_churn": 2}  # the latter without churn
