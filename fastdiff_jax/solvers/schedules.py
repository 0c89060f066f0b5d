"""Noise levels of a sampling run: host float64, decreasing.

A `Schedule` maps N, the number of STEPS, to N + 1 levels. Texts that count time stamps n (the solver zoo,
SFD) mean N = n - 1 and end above zero; EDM's `num_steps` is N and its levels end at zero.
"""

import inspect
import math
from collections.abc import Mapping

import jax
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.precond import same
from fastdiff_jax.types import Precond, Schedule


def polynomial(
    sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, zero: bool = True
) -> Schedule:
    """Levels evenly spaced in sigma^(1/rho), from sigma_max to sigma_min, both exact.

        sigma_i = (sigma_max^(1/rho) + u_i (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Args:
      zero: True: u_i = i / (N - 1) for i < N and then a level 0, as EDM; N = 1 is (sigma_max, 0).
        False: u_i = i / N for i <= N.
    Raises: ValueError unless 0 < sigma_min < sigma_max < inf and rho > 0.
    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 5.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"a schedule needs 0 < sigma_min < sigma_max < inf; got sigma_min {sigma_min}, "
            f"sigma_max {sigma_max}."
        )
    if not 0 < rho < math.inf:
        raise ValueError(f"rho is the power of a polynomial schedule, so positive; got {rho}.")

    def levels(steps: int) -> np.ndarray:
        _check_steps(steps)
        ends = np.array([sigma_max, sigma_min]) ** (1 / rho)
        sigmas = np.linspace(*ends, steps if zero else steps + 1) ** rho
        sigmas[-1], sigmas[0] = sigma_min, sigma_max
        return np.append(sigmas, 0.0) if zero else sigmas

    return levels


def rounded(schedule: Schedule, precond: Precond) -> Schedule:
    """`schedule` with each level moved to the nearest one that the model was trained at; zero stays.

    Levels may merge when there are more steps than trained levels; `driver.prepare` refuses those.
    """
    if precond.round is same:
        return schedule

    def levels(steps: int) -> np.ndarray:
        sigmas = schedule(steps)
        return np.where(sigmas == 0, 0.0, on_host(precond.round, sigmas))

    return levels


def on_host(function, sigmas: np.ndarray) -> np.ndarray:
    """function(sigmas) of a jax function, in float64 whatever the precision of the program."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return np.asarray(jax.jit(function)(jax.numpy.asarray(sigmas, np.float64)))


SCHEDULES = {"polynomial": polynomial}


def build(config, precond: Precond | None = None) -> Schedule:
    """The schedule that `config["name"]` asks for; the other entries are its arguments.

    Args:
      precond: a model whose range cuts the ends that the config leaves to their defaults.
    Raises: ValueError naming the known schedules or options.
    """
    given = dict(config)
    if precond is None or given.get("name") not in SCHEDULES:
        return registry.choose(SCHEDULES, given, "schedule")
    return registry.choose(SCHEDULES, clipped({"name": given["name"]}, precond) | given, "schedule")


def clipped(config: Mapping, precond: Precond) -> dict:
    """A schedule's config with `sigma_min` and `sigma_max` cut to a model's range, as EDM's sampler does."""
    cut = _ends(config["name"]) | dict(config)
    if "sigma_min" in cut:
        cut["sigma_min"] = max(cut["sigma_min"], precond.sigma_min)
        cut["sigma_max"] = min(cut["sigma_max"], precond.sigma_max)
    return cut


def _ends(name):
    """The default ends of a schedule that has any."""
    taken = inspect.signature(SCHEDULES[name]).parameters
    return {end: taken[end].default for end in ("sigma_min", "sigma_max") if end in taken}


def check_range(sigmas: np.ndarray, precond: Precond) -> None:
    """Raises ValueError if levels (N+1,), but for a last zero, lie outside a model's range."""
    low, high = sigmas[sigmas > 0].min(), sigmas.max()
    slack = 1 + 1e-6  # ends are computed on several ways
    if high > precond.sigma_max * slack or low * slack < precond.sigma_min:
        raise ValueError(
            f"the model was trained for noise levels from {precond.sigma_min:g} to {precond.sigma_max:g}; the "
            f"schedule asks for {low:g} to {high:g}: set sigma_min and sigma_max within the range."
        )


def _check_steps(steps: int) -> None:
    if steps < 1 or steps != int(steps):
        raise ValueError(f"a schedule has a whole number of steps, at least one; got {steps}.")
