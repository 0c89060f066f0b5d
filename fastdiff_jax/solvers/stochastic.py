"""Solvers that add noise at every step: ancestral sampling and SDE solvers.

A step goes to a level `down` below the next one and adds noise up to it. That level's variance is split into

    up = eta sigma' sqrt(1 - (sigma'/sigma)^2),    down = sqrt(sigma'^2 - up^2)

which with eta = 1 is the posterior of the diffusion process, and with eta = 0 deterministic. Noise is drawn
at every step; one onto zero adds none.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from fastdiff_jax.solvers import multistep, singlestep
from fastdiff_jax.types import Array, At, Solver, expand


class Row(NamedTuple):
    """Coefficients of one step with one network call, or of all with a leading axis N."""

    a: Array  # as multistep.Row
    b: Array
    spread: Array  # () standard deviation of the noise added


class Stages(NamedTuple):
    """Coefficients of one step with several network calls, or of all with a leading axis N."""

    levels: Array  # as singlestep.Row
    a: Array
    b: Array
    spread: Array  # () standard deviation of the noise added


def noised(x: Array, at: At, who: str) -> Array:
    """x + spread z, with the step's `spread` and its first draw.

    Raises: ValueError if the run has no noise, in the name of `who`.
    """
    if at.noise is None:
        raise ValueError(
            f"{who} draws noise at every step; pass noise, e.g. driver.per_image(keys, shape)."
        )
    return x + expand(at.row.spread, x) * at.noise(0)


def from_data(denoise, latest, x, at, *, plan):
    """The multistep step on x0 predictions, and noise."""
    x, latest = multistep.from_data(denoise, latest, x, at, plan=plan)
    return noised(x, at, "an ancestral or SDE solver"), latest


def staged(denoise, _, x, at, *, plan):
    """The single-step step on eps predictions, and noise."""
    x, _ = singlestep.from_noise(denoise, None, x, at, plan=plan)
    return noised(x, at, "an ancestral solver"), None


def split(sigmas: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """(down, up), each (N,), of the levels (N+1,)."""
    ratio = sigmas[1:] / sigmas[:-1]
    up = eta * sigmas[1:] * np.sqrt(1 - ratio**2)
    return sigmas[1:] * np.sqrt(1 - eta**2 + (eta * ratio) ** 2), up


def ddim_rows(sigmas: np.ndarray, eta: float) -> Row:
    """x' = x0 + down eps + up z."""
    down, up = split(sigmas, eta)
    a = down / sigmas[:-1]
    return Row(a, 1 - a[:, None], up)


def ddim_eta(eta: float = 1.0) -> Solver:
    """DDIM between the deterministic sampler (eta = 0, which is `euler`) and the ancestral one (eta = 1).

    Args:
      eta: in [0, 1].
    Raises: ValueError for another eta.
    Source: Song et al. 2021 (arXiv:2010.02502), eqs. 12 and 16.
    """
    if _eta(eta) == 0:
        return multistep.euler()
    return Solver(from_data, multistep.empty, partial(ddim_rows, eta=eta))


def ddpm() -> Solver:
    """Ancestral sampling with the posterior variance; also known as Euler a and SDE-DPM-Solver++(1M).

        x' = (sigma'/sigma)^2 x + (1 - (sigma'/sigma)^2) x0 + sigma' sqrt(1 - (sigma'/sigma)^2) z

    Source: Ho et al. 2020 (arXiv:2006.11239), eqs. 6 and 7.
    """
    return ddim_eta(1.0)


def dpm_2_a(eta: float = 1.0) -> Solver:
    """Ancestral DPM-2: its step (r = 1/2) to `down`, then noise; two calls a step, one onto sigma = 0.

    The step's end has the right variance up to the error of the deterministic part, so order 2 in it.

    Args:
      eta: in [0, 1]; 0 is `dpm_2`.
    Raises: ValueError for another eta.
    Source: as used by Cheng 2023 (arXiv:2311.06845).
    """
    if _eta(eta) == 0:
        return singlestep.dpm_2()
    plan = partial(singlestep.calls, stages=2)

    def table(sigmas):
        down, up = split(sigmas, eta)
        formulas = {1: singlestep.euler, 2: partial(singlestep.second, r=0.5)}
        return Stages(*singlestep.tabled(formulas, plan(sigmas), sigmas[:-1], down), up)

    return Solver(staged, table=table, plan=plan)


def sde_dpmpp_2m_rows(sigmas: np.ndarray, lower_order_final: bool) -> Row:
    """Coefficients of the SDE form of DPM-Solver++(2M); h = ln(sigma / sigma'), m: x0 predictions.

        x' = e^(-2h) x + (1 - e^(-2h)) (m0 + (m0 - m1) h / (2 h_prev)) + sigma' sqrt(1 - e^(-2h)) z
    """
    a, b, up = ddim_rows(sigmas, eta=1.0)
    b = np.pad(b, ((0, 0), (0, 1)))
    with np.errstate(divide="ignore"):
        h = -np.diff(np.log(sigmas))
    for i, order in enumerate(multistep.orders(sigmas, 2, lower_order_final)):
        if order == 2:
            b[i] += (1 - a[i]) * h[i] / (2 * h[i - 1]) * np.array([1, -1])
    return Row(a, b, up)


def sde_dpmpp_2m(lower_order_final: bool = True) -> Solver:
    """SDE-DPM-Solver++(2M), data prediction: the first-order SDE step with x0 extrapolated.

    Of order 2 in the variance on Gaussian data: what the step leaves out of x0's dependence on its own noise
    cancels against what its noise has too little.

    Args:
      lower_order_final: order 1 at the last step, which is steadier with few of them.
    Source: Lu et al. 2022 (arXiv:2211.01095), appendix on solving the diffusion SDEs.
    """
    rows = partial(sde_dpmpp_2m_rows, lower_order_final=lower_order_final)
    return Solver(from_data, multistep.empty, rows)


def _eta(eta):
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is the share of the posterior's noise, in [0, 1]; got {eta}.")
    return eta


SOLVERS = {
    "ddim_eta": ddim_eta,
    "ddpm": ddpm,
    "euler_a": ddpm,
    "sde_dpmpp_1m": ddpm,
    "sde_dpmpp_2m": sde_dpmpp_2m,
    "dpm_2_a": dpm_2_a,
}
# Orders at which the variance at the last level converges on Gaussian data, by measurement.
WEAK_ORDERS = {
    "ddim_eta": 1,
    "ddpm": 1,
    "euler_a": 1,
    "sde_dpmpp_1m": 1,
    "sde_dpmpp_2m": 2,
    "dpm_2_a": 2,
}
