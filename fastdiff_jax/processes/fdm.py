"""FDM: processes whose scale is the response of a damped oscillator (Wu et al. 2023, arXiv:2306.06991).

    x_t = s (x0 + sigma eps),    s = e^(-u) (1 + u),    u = m B(t),    B(t) = beta_min t + beta_d t^2 / 2

As in the authors' code, momentum enters the scale alone: there is no velocity, and the noise levels, losses and
samplers are those of the base process. Where x is in the coordinates x0 + sigma eps, only a network's input
is scaled by s (`precond.with_input_scale`), so an exact denoiser samples the same images with and without.
Its time t is linear in sigma and 1 at the largest level; it is not the base process's own.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from fastdiff_jax.processes import oscillator, standard
from fastdiff_jax.types import Array, Process

BETA_D, BETA_MIN = 19.9, 0.1
TIMES = ("sigma_linear", "native")


def clock(t: Array, beta_d: float = BETA_D, beta_min: float = BETA_MIN) -> Array:
    """B(t), the integral of beta_min + beta_d t: 10.05 at t = 1. Elementwise."""
    return beta_min * t + beta_d * t**2 / 2


def damped(
    base: Process,
    ends: tuple[float, float],
    multiplier: float,
    beta_d: float = BETA_D,
    beta_min: float = BETA_MIN,
    damping: float = 1.0,
    time: str = "sigma_linear",
) -> Process:
    """The noise levels of `base` under the oscillator's scale, in a time from 0 to 1.

    Levels a little outside the ends have a time a little outside, as training draws do: nothing is clipped.

    Args:
      ends: smallest and largest noise level.
      multiplier: m, the oscillator's frequency in the clock B.
      damping: 1 is FDM; below, the scale oscillates through zero; above, it decays more slowly.
      time: "sigma_linear", FDM's own: t = (sigma - ends[0]) / (ends[1] - ends[0]); "native": the base
        process's time, shifted and scaled to 0..1.
    Raises: ValueError if multiplier or damping is not positive, for betas that do not grow, ends that do not,
      and another time.
    """
    scale = _scale(multiplier, beta_d, beta_min, damping)
    if time not in TIMES:
        raise ValueError(f"the time of FDM is {' or '.join(TIMES)}; got {time!r}.")
    if not 0 <= ends[0] < ends[1] < math.inf:
        raise ValueError(
            f"noise levels run up from one end to the other, both finite; got {ends[0]} and {ends[1]}."
        )
    low, width = ends[0], ends[1] - ends[0]
    first, span = base.t_min, base.t_max - base.t_min
    if time == "native":
        sigma, inverse = lambda t: base.sigma(first + t * span), lambda s: (base.inverse(s) - first) / span
    else:
        sigma, inverse = lambda t: low + t * width, lambda s: (s - low) / width
    return Process(scale, sigma, inverse, 0.0, 1.0)


def edm(
    multiplier: float = 2.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    beta_d: float = BETA_D,
    beta_min: float = BETA_MIN,
    damping: float = 1.0,
    time: str = "sigma_linear",
) -> Process:
    """EDM-FDM; see `damped`. The multiplier of the authors' class is 1 by default, of their command line 2."""
    base, ends = standard.edm(sigma_min, sigma_max), (sigma_min, sigma_max)
    return damped(base, ends, multiplier, beta_d, beta_min, damping, time)


def vp(
    multiplier: float = 2.0,
    eps: float = 1e-5,
    beta_d: float = BETA_D,
    beta_min: float = BETA_MIN,
    damping: float = 1.0,
    time: str = "sigma_linear",
) -> Process:
    """VP-FDM over the levels of the usual VP process, from its time eps to 1; see `damped`."""
    ends = tuple(float(standard.vp_level(t)) for t in (eps, 1.0))
    return damped(standard.vp(eps=eps), ends, multiplier, beta_d, beta_min, damping, time)


def ve(
    multiplier: float = 1.0,
    sigma_min: float = 0.02,
    sigma_max: float = 100.0,
    beta_d: float = BETA_D,
    beta_min: float = BETA_MIN,
    damping: float = 1.0,
    time: str = "sigma_linear",
) -> Process:
    """VE-FDM, whose m is always 1: as in the authors' code, the multiplier is taken and not used; see `damped`.

    Raises: ValueError if the multiplier is not positive, used or not.
    """
    oscillator.check_positive("multiplier", multiplier)
    base, ends = standard.ve(sigma_min, sigma_max), (sigma_min, sigma_max)
    return damped(base, ends, 1.0, beta_d, beta_min, damping, time)


def momentum(
    multiplier: float = 2.0,
    beta_d: float = BETA_D,
    beta_min: float = BETA_MIN,
    damping: float = 1.0,
    t_min: float = 1e-3,
) -> Process:
    """The textbook momentum process: the noise passes through the oscillator too. Not FDM, for study.

        s = response(m B(t)),    sigma = sqrt(Var x) / s;    critical: Var x = P(3, 2 m B), incomplete gamma

    This is the position of CLD started without velocity, with mass 1 / m^2 and the clock B. `inverse` is
    found by bisection within [t_min, 1], and differentiable; levels outside have no meaningful time.

    Raises: ValueError as `damped`, for t_min outside (0, 1), and below critical damping: there the mean passes
      through zero, where the noise level is infinite.
    """
    scale = _scale(multiplier, beta_d, beta_min, damping)
    if damping < 1:
        raise ValueError(
            f"below critical damping the mean passes through zero, so there is no noise level; got {damping}: "
            "use 1 or more."
        )
    if not 0 < t_min < 1:
        raise ValueError(f"t_min is the time of the smallest level, in (0, 1); got {t_min}.")

    def sigma(t):
        spread = oscillator.covariance(multiplier * clock(t, beta_d, beta_min), 1.0, damping)
        return jnp.sqrt(spread[..., 0, 0]) / scale(t)

    return Process(scale, sigma, partial(_inverse, sigma, t_min), t_min, 1.0)


def _inverse(sigma, t_min, level):
    """The time in [t_min, 1] of a level of increasing `sigma`."""
    level = jnp.asarray(level)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = sigma(middle) < level
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.full_like(level, t_min), jnp.ones_like(level)
    t = jax.lax.stop_gradient(jax.lax.fori_loop(0, 60, halve, ends)[0])
    value, slope = jax.jvp(lambda t: jnp.log(sigma(t)), (t,), (jnp.ones_like(t),))
    # A Newton step: it moves by less than the bisection's last bit, and carries the derivative.
    return t + (jnp.log(level) - value) / jax.lax.stop_gradient(slope)


def _scale(multiplier, beta_d, beta_min, damping):
    """t -> response(m B(t)), of numbers that have one."""
    oscillator.check_positive("multiplier", multiplier)
    oscillator.check_positive("damping", damping)
    if not (0 <= beta_min < math.inf and 0 <= beta_d < math.inf and beta_min + beta_d > 0):
        raise ValueError(f"betas must grow the clock; got beta_min {beta_min} and beta_d {beta_d}.")
    return lambda t: oscillator.response(multiplier * clock(t, beta_d, beta_min), damping)


PROCESSES = {"edm": edm, "vp": vp, "ve": ve, "momentum": momentum}
