"""EDM's second-order sampler, deterministic and with churn (Karras et al. 2022, arXiv:2206.00364)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastdiff_jax.precond import same
from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.solvers.schedules import on_host
from fastdiff_jax.types import Array, Solver, expand


def calls(sigmas: np.ndarray) -> tuple[int, ...]:
    """The plan: two calls a step, one onto sigma = 0, where the network is undefined."""
    return tuple(1 if sigma == 0 else 2 for sigma in sigmas[1:])


def trapezium(denoise, _, x, at, *, plan):
    """The mean of the slopes at both ends of a step; its own start only, if the end is zero."""
    h = expand(at.sigma_next - at.sigma, x)
    slope = (x - predict(denoise, x, at)) / expand(at.sigma, x)
    euler = x + h * slope
    if plan == 1:
        return euler, None
    back = (euler - denoise(euler, at.sigma_next)) / expand(at.sigma_next, x)
    return x + h * (slope + back) / 2, None


def heun(repeats: bool = False) -> Solver:
    """EDM's second-order step (Alg. 1): two calls, one for a step onto sigma = 0.

    Args:
      repeats: accept equal neighbouring levels, as the reference does after rounding; such steps are wasted.
    """
    return Solver(trapezium, plan=calls, repeats=repeats)


class Row(NamedTuple):
    """What churn does at one step."""

    hat: Array  # () level that the step is taken from
    spread: Array  # () standard deviation of the noise that leads there


def churned(denoise, _, x, at, *, plan):
    """Noise up to `hat`, then the deterministic step from there."""
    if at.known is not None:
        raise ValueError("churn moves x before its first network call, so no prediction can be known.")
    if at.noise is None:
        raise ValueError("churn draws noise at every step; pass noise, e.g. driver.per_image(keys, shape).")
    x = x + expand(at.row.spread, x) * at.noise(0)
    return trapezium(denoise, _, x, at._replace(sigma=at.row.hat), plan=plan)


def heun_churn(
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = float("inf"),
    s_noise: float = 1.0,
    rounding: Callable[[Array], Array] = same,
) -> Solver:
    """EDM's stochastic sampler (Alg. 2): each step first adds noise.

        gamma = min(s_churn / N, sqrt(2) - 1) where s_min <= sigma <= s_max, else 0
        hat = rounding(sigma (1 + gamma)),    x_hat = x + sqrt(hat^2 - sigma^2) s_noise z

    z is drawn at every step, also where gamma is 0, so that images do not change with the gate.

    Args:
      rounding: to the levels the model was trained at, `Precond.round`.
    Raises: ValueError for negative churn or noise, and for an empty gate.
    """
    if s_churn < 0 or s_noise < 0:
        raise ValueError(f"s_churn and s_noise are amounts of noise; got {s_churn} and {s_noise}.")
    if s_min > s_max:
        raise ValueError(f"churn acts from s_min to s_max; got {s_min} > {s_max}.")

    def table(sigmas):
        sigma = sigmas[:-1]
        gate = (s_min <= sigma) & (sigma <= s_max)
        gamma = np.where(gate, min(s_churn / len(sigma), np.sqrt(2) - 1), 0.0)
        hat = sigma * (1 + gamma)
        hat = hat if rounding is same else on_host(rounding, hat)
        # On the host: in the graph's precision the difference may come out negative.
        return Row(hat, np.sqrt(np.maximum(hat**2 - sigma**2, 0.0)) * s_noise)

    # Rounding may merge levels; a step between equal ones still exchanges noise here.
    return Solver(churned, table=table, plan=calls, repeats=rounding is not same)


SOLVERS = {"heun": heun, "heun_churn": heun_churn}
ORDERS = {"heun": 2, "heun_churn": 2}  # the latter without churn
