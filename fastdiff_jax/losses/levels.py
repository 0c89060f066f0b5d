"""Noise-level laws: a standard draw per sample in, sigma (B,) out.

The draw and the law are apart so that recorded draws replay: `normal` laws read N(0, 1), the others
U[0, 1), or an index.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastdiff_jax.processes import discrete as processes
from fastdiff_jax.processes import standard
from fastdiff_jax.types import Array, Key

RARE = 5.0  # standard deviations


class Levels(NamedTuple):
    """A distribution of noise levels."""

    draw: Callable[[Key, tuple[int, ...]], Array]  # (key, (B,)) -> standard draws
    sigma: Callable[[Array], Array]  # draws (B,) -> sigma (B,)
    ends: tuple[float, float]  # the least and the largest level that training meets


def lognormal(mean: float = -1.2, std: float = 1.2) -> Levels:
    """sigma = exp(mean + std r), r ~ N(0, 1); EDM's training law (arXiv:2206.00364, Table 1).

    Its ends are those of |r| = RARE, beyond which 6 draws in ten million lie.
    """
    ends = math.exp(mean - RARE * std), math.exp(mean + RARE * std)
    return Levels(jax.random.normal, lambda r: jnp.exp(mean + std * r), ends)


def karras(
    t_max: float = 800.0, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Levels:
    """EDM's sampling curve, read at a uniform index and cut at t_max of 1000.

        sigma = (sigma_max^(1/rho) + (1 - tau) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
        tau = u t_max / 1000

    tau = 0 is sigma_min. SiD's generator law (arXiv:2404.04057): tau = 0.8 ends it at 24.41.
    Raises: ValueError if t_max is outside (0, 1000].
    """
    if not 0 < t_max <= 1000:
        raise ValueError(
            f"t_max counts thousandths of the noise curve, so 0 < t_max <= 1000; got {t_max}."
        )
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return Levels(
        jax.random.uniform,
        lambda u: (high + (1 - u * (t_max / 1000)) * (low - high)) ** rho,
        (sigma_min, (high + (1 - t_max / 1000) * (low - high)) ** rho),
    )


def karras_grid(
    first: int = 0, last: int = 999, steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Levels:  # fmt: skip
    """EDM's sampling curve on a grid of `steps` levels, entry 0 the smallest, at a uniform index first..last.

    DMD2's laws (arXiv:2405.14867): 20..980 for the generator, all for fake score and discriminator. The
    standard draws are integer indices.
    Raises: ValueError for an empty or impossible range.
    """
    if not 0 <= first <= last < steps or steps < 2:
        raise ValueError(
            f"levels {first} to {last} of a grid of {steps}: they lie between 0 and {steps - 1}, the first not "
            "above the last."
        )
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def sigma(index):
        share = jnp.asarray(index, jnp.result_type(float)) / (steps - 1)
        return (high + (1 - share) * (low - high)) ** rho

    def draw(key, shape):
        return jax.random.randint(key, shape, first, last + 1)

    exact = {0: sigma_min, steps - 1: sigma_max}  # which rounding would miss
    ends = [
        exact.get(index, (high + (1 - index / (steps - 1)) * (low - high)) ** rho)
        for index in (first, last)
    ]
    return Levels(draw, sigma, tuple(ends))


def vp_time(beta_d: float = 19.9, beta_min: float = 0.1, eps: float = 1e-5) -> Levels:
    """sigma(t) of the VP process at t = 1 + u (eps - 1), uniform over (eps, 1]."""
    process = standard.vp(beta_d, beta_min, eps)
    ends = tuple(float(standard.vp_level(t, beta_d, beta_min)) for t in (eps, 1.0))
    return Levels(jax.random.uniform, lambda u: process.sigma(1 + u * (eps - 1)), ends)


def log_uniform(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Levels:
    """sigma = sigma_min (sigma_max / sigma_min)^u: the VE process in its own time."""
    return Levels(
        jax.random.uniform, lambda u: sigma_min * (sigma_max / sigma_min) ** u, (sigma_min, sigma_max)
    )


def discrete(
    betas: str = "scaled_linear",
    beta_0: float | None = None,
    beta_1: float | None = None,
    steps: int = processes.STEPS,
    zero_snr: bool = False,
) -> Levels:
    """The level of a uniform label 0..M-1 of a discrete model; the standard draws are labels.

    Args:
      betas, beta_0, beta_1, steps, zero_snr: as `processes.discrete.alphas_cumprod`; steps is M.
    Raises: ValueError for bad betas.
    Source: Ho et al. 2020 (arXiv:2006.11239), Alg. 1.
    """
    table = processes.sigmas(processes.alphas_cumprod(betas, steps, beta_0, beta_1, zero_snr))

    def draw(key, shape):
        return jax.random.randint(key, shape, 0, len(table))

    ends = float(table[0]), float(table[-1])
    return Levels(draw, lambda label: jnp.asarray(table, jnp.result_type(float))[label], ends)


LEVELS = {"lognormal": lognormal, "karras": karras, "karras_grid": karras_grid, "vp_time": vp_time,
          "log_uniform": log_uniform, "discrete": discrete}  # fmt: skip
