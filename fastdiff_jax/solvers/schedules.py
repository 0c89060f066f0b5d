"""Noise levels of a sampling run: host float64, decreasing.

A `Schedule` maps N, the number of STEPS, to N + 1 levels. Texts that count time stamps n (the solver zoo,
SFD) mean N = n - 1 and end above zero; EDM's `num_steps` is N and its levels end at zero.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.precond import same
from fastdiff_jax.processes import discrete as processes
from fastdiff_jax.processes.standard import vp, vp_level
from fastdiff_jax.solvers import driver
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
    _check_ends(sigma_min, sigma_max)
    _check_power(rho)
    return _between(sigma_min, sigma_max, zero, partial(_powers, sigma_max, sigma_min, rho))


def logsnr(sigma_min: float = 0.002, sigma_max: float = 80.0, zero: bool = True) -> Schedule:
    """Levels evenly spaced in ln sigma, so in log-SNR: sigma_i = sigma_max (sigma_min / sigma_max)^u_i.

    Args:
      zero: as `polynomial`.
    Raises: ValueError unless 0 < sigma_min < sigma_max < inf.
    Source: Lu et al. 2022 (arXiv:2206.00927).
    """
    _check_ends(sigma_min, sigma_max)
    return _between(sigma_min, sigma_max, zero, partial(np.geomspace, sigma_max, sigma_min))


def time(
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 1.0,
    eps_s: float = 1e-3,
    beta_d: float | None = None,
    beta_min: float | None = None,
    zero: bool = True,
) -> Schedule:
    """Levels evenly spaced in the time t^(1/rho) of a variance preserving process with linear betas.

        sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)

    rho = 1 is uniform in time, rho = 2 what other texts call quadratic.

    Args:
      eps_s: time of sigma_min, where the betas are not given. They are then solved from the range, so that
        sigma(1) = sigma_max and sigma(eps_s) = sigma_min:
            L(s) = ln(1 + s^2),    beta_d = 2 (L(sigma_min) / eps_s - L(sigma_max)) / (eps_s - 1),
            beta_min = L(sigma_max) - beta_d / 2
      beta_d, beta_min: a process of one's own, 19.9 and 0.1 for the usual one; the times of both ends follow.
      zero: as `polynomial`.
    Raises: ValueError unless 0 < sigma_min < sigma_max < inf, rho > 0, 0 < eps_s < 1, and where sigma(t) does
      not rise throughout.
    Source: Song et al. 2021 (arXiv:2011.13456); Zhang and Chen 2022 (arXiv:2204.13902).
    """
    _check_ends(sigma_min, sigma_max)
    _check_power(rho)
    if (beta_d is None) != (beta_min is None):
        raise ValueError(f"beta_d and beta_min go together; got beta_d {beta_d}, beta_min {beta_min}.")
    if beta_d is None:
        beta_d, beta_min = vp_betas(sigma_min, sigma_max, eps_s)
        high, low = 1.0, eps_s
    else:
        if not (0 <= beta_d < math.inf and 0 <= beta_min < math.inf and beta_d + beta_min > 0):
            raise ValueError(
                f"betas are finite and not negative; got beta_d {beta_d}, beta_min {beta_min}."
            )
        high, low = on_host(vp(beta_d, beta_min).inverse, np.array([sigma_max, sigma_min]))

    def levels(count):
        t = _powers(high, low, rho, count)
        return vp_level(t, beta_d, beta_min)

    return _between(sigma_min, sigma_max, zero, levels)


def vp_betas(sigma_min: float, sigma_max: float, eps_s: float = 1e-3) -> tuple[float, float]:
    """(beta_d, beta_min) of the linear process with sigma(1) = sigma_max, sigma(eps_s) = sigma_min; see `time`.

    Raises: ValueError unless 0 < eps_s < 1, and where no rising sigma(t) passes through both.
    """
    if not 0 < eps_s < 1:
        raise ValueError(f"eps_s is the time of sigma_min, within (0, 1); got {eps_s}.")
    low, high = np.log1p(np.array([sigma_min, sigma_max]) ** 2)
    beta_d = float(2 * (low / eps_s - high) / (eps_s - 1))
    beta_min = float(high - beta_d / 2)
    if min(beta_d * eps_s, beta_d) + beta_min <= 0:  # the exponent's slope, linear in t
        raise ValueError(
            f"no linear betas rise from {sigma_min:g} at time {eps_s:g} to {sigma_max:g} at time 1; give "
            "beta_d and beta_min, or another eps_s."
        )
    return beta_d, beta_min


def cosine(
    sigma_min: float = math.exp(-10), sigma_max: float = math.exp(10), zero: bool = True
) -> Schedule:
    """The cosine log-SNR schedule: levels evenly spaced in the angle arctan sigma.

        sigma(u) = tan(a u + b),    b = arctan sigma_min,    a = arctan sigma_max - b,    u = 1 - i / N

    In log-SNR lambda = -2 ln sigma the ends are lambda_min = -2 ln sigma_max = -20 and lambda_max = 20.

    Args:
      zero: the level at u = 0 is 0 in place of sigma_min. Unlike `polynomial`'s, no level is added: those of
        N steps are every second one of 2 N steps, which halving distillation needs.
    Raises: ValueError unless 0 < sigma_min < sigma_max < inf.
    Source: Salimans and Ho 2022 (arXiv:2202.00512); with limits as in the authors' code.
    """
    _check_ends(sigma_min, sigma_max)
    ends = np.arctan([sigma_max, sigma_min])
    ended = _between(sigma_min, sigma_max, False, lambda count: np.tan(np.linspace(*ends, count)))
    if not zero:
        return ended

    def levels(steps: int) -> np.ndarray:
        return np.append(ended(steps)[:-1], 0.0)

    return levels


def discrete(
    sigma_min: float = 0.0,
    sigma_max: float = math.inf,
    rho: float = 1.0,
    betas: str = "scaled_linear",
    beta_0: float | None = None,
    beta_1: float | None = None,
    train_steps: int = processes.STEPS,
    zero_snr: bool = False,
    zero: bool = True,
) -> Schedule:
    """Levels evenly spaced in tau^(1/rho), the time of a discrete model's own map (`processes.discrete`).

    Args:
      sigma_min, sigma_max: within the model's levels; 0 and inf are its own ends.
      betas, beta_0, beta_1, train_steps, zero_snr: as `alphas_cumprod`; Stable Diffusion's by default.
      zero: as `polynomial`.
    Raises: ValueError for bad betas, rho not positive, and ends outside the model's levels.
    Source: Zhou et al. 2024 (arXiv:2312.00094); their code does not take T^(1/rho) at the upper end, which
      agrees where that is the model's own, T = 1.
    """
    _check_power(rho)
    model = processes.process(processes.alphas_cumprod(betas, train_steps, beta_0, beta_1, zero_snr))
    lowest, highest = on_host(model.sigma, np.array([model.t_min, model.t_max]))
    sigma_min = float(lowest) if sigma_min == 0 else sigma_min
    sigma_max = float(highest) if sigma_max == math.inf else sigma_max
    _check_ends(sigma_min, sigma_max)
    slack = 1 + 1e-6
    if sigma_min * slack < lowest or sigma_max > highest * slack:
        raise ValueError(
            f"the levels of these betas go from {lowest:g} to {highest:g}; got sigma_min {sigma_min:g}, "
            f"sigma_max {sigma_max:g}: keep within, or leave them to their defaults."
        )
    high, low = on_host(model.inverse, np.array([sigma_max, sigma_min]))
    return _between(
        sigma_min, sigma_max, zero,
        lambda count: on_host(model.sigma, _powers(high, low, rho, count)),
    )  # fmt: skip


def timesteps(
    spacing: str = "trailing",
    offset: int = 0,
    betas: str = "scaled_linear",
    beta_0: float | None = None,
    beta_1: float | None = None,
    train_steps: int = processes.STEPS,
    zero_snr: bool = False,
    zero: bool = True,
) -> Schedule:
    """The levels of a list of a discrete model's labels, one a step, and the level that the last one leads to.

    Args:
      spacing, offset: as `processes.discrete.labels`.
      betas, beta_0, beta_1, train_steps, zero_snr: as `alphas_cumprod`; Stable Diffusion's by default.
      zero: the last step ends at 0; False: at the level of label 0, diffusers' `set_alpha_to_one=False`.
        Leading labels with offset 1 and zero=False are the levels of PNDM, official and diffusers'.
    Raises: ValueError for bad betas, spacing or offset, for more steps than labels, and if the last step would
      lead from label 0 to itself.
    Source: Lin et al. 2023 (arXiv:2305.08891), Table 2.
    """
    trained = processes.sigmas(processes.alphas_cumprod(betas, train_steps, beta_0, beta_1, zero_snr))

    def levels(steps: int) -> np.ndarray:
        _check_steps(steps)
        labels = processes.labels(spacing, steps, len(trained), offset)
        if labels[-1] == 0 and not zero:
            raise ValueError(
                f"{steps} {spacing} labels end at 0 already, where a last step would stand still; set "
                "zero=True or, for leading ones, offset=1."
            )
        return np.append(trained[labels], 0.0 if zero else trained[0])

    processes.labels(spacing, 1, len(trained), offset)  # a bad request fails where it is made
    return levels


def listed(sigmas: Sequence[float] = ()) -> Schedule:
    """The given levels (N+1,), such as a searched schedule; for N steps only, its attribute `steps`.

    Raises: ValueError unless they are finite, strictly decreasing, positive but for a last zero; when called
      with another number of steps.
    """
    given = driver.levels(sigmas)

    def levels(steps: int) -> np.ndarray:
        if steps != levels.steps:
            raise ValueError(
                f"a list of {len(given)} levels is for {levels.steps} steps; got {steps}: ask for that many, "
                "or give another list."
            )
        return given.copy()

    levels.steps = len(given) - 1
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


SCHEDULES = {
    "polynomial": polynomial,
    "logsnr": logsnr,
    "time": time,
    "cosine": cosine,
    "discrete": discrete,
    "timesteps": timesteps,
    "levels": listed,
}


def build(config, precond: Precond | None = None) -> Schedule:
    """The schedule that `config["name"]` asks for; the other entries are its arguments.

    Args:
      precond: a model whose range cuts the ends that the config leaves to their defaults.
    Raises: ValueError naming the known schedules or options.
    """
    if not hasattr(config, "keys"):
        raise ValueError(f"a schedule is a name with its settings, dict(name=...); got {config!r}.")
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


def _check_ends(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"a schedule needs 0 < sigma_min < sigma_max < inf; got sigma_min {sigma_min}, "
            f"sigma_max {sigma_max}."
        )


def _check_power(rho: float) -> None:
    if not 0 < rho < math.inf:
        raise ValueError(f"rho is the power of a schedule's spacing, so positive; got {rho}.")


def _powers(high: float, low: float, rho: float, count: int) -> np.ndarray:
    """(count,) numbers from high to low, evenly spaced in their 1/rho-th power."""
    return np.linspace(*np.array([high, low]) ** (1 / rho), count) ** rho


def _between(
    sigma_min: float, sigma_max: float, zero: bool, curve: Callable[[int], np.ndarray]
) -> Schedule:
    """The schedule of curve(count) -> (count,) levels; both ends exact, and a last 0 if asked."""

    def levels(steps: int) -> np.ndarray:
        _check_steps(steps)
        sigmas = np.array(curve(steps if zero else steps + 1))
        sigmas[-1], sigmas[0] = sigma_min, sigma_max
        return np.append(sigmas, 0.0) if zero else sigmas

    return levels
