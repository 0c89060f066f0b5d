"""EDM's generalised sampler, of its ablations: any time and scale schedule (arXiv:2206.00364, eq. 4).

The sampler moves s(t) x by steps in a time t with sigma = sigma(t). Here x stays in the coordinates
x0 + sigma eps, so both schedules become coefficients on the host. Its discretizations are schedules:
`vp_levels` and `iddpm_levels`; for ve, `logsnr` from 100 to 0.02, for edm, `polynomial`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.precond import same
from fastdiff_jax.processes import fdm
from fastdiff_jax.processes.standard import vp_level
from fastdiff_jax.solvers import schedules, singlestep
from fastdiff_jax.solvers.heun import churn, lifted
from fastdiff_jax.types import Array, Schedule, Solver


class Clock(NamedTuple):
    """Noise level as a function of time: elementwise on host arrays."""

    sigma: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]  # dsigma / dt
    inverse: Callable[[np.ndarray], np.ndarray]


def linear_clock() -> Clock:
    """sigma = t."""
    return Clock(lambda t: t, np.ones_like, lambda sigma: sigma)


def ve_clock() -> Clock:
    """sigma = sqrt(t)."""
    return Clock(np.sqrt, lambda t: 0.5 / np.sqrt(t), np.square)


def vp_clock(sigma_min: float, sigma_max: float, eps_s: float) -> Clock:
    """sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1); the range's ends are sigma(eps_s) and sigma(1)."""
    beta_d, beta_min = schedules.vp_betas(sigma_min, sigma_max, eps_s)

    def sigma(t):
        return vp_level(t, beta_d, beta_min)

    def slope(t):
        return (beta_min + beta_d * t) * (sigma(t) + 1 / sigma(t)) / 2

    def inverse(sigma):
        # The larger root of the quadratic, as it does not cancel; a range may ask for beta_min < 0.
        level = np.log1p(sigma**2)
        root = np.sqrt(beta_min**2 + 2 * beta_d * level)
        return 2 * level / (beta_min + root) if beta_min > 0 else (root - beta_min) / beta_d

    return Clock(sigma, slope, inverse)


class Scale(NamedTuple):
    """The scale s as a function of the noise level, on the host."""

    value: Callable[[float], float]
    slope: Callable[[float], float]  # ds / dsigma


def fdm_scale(multiplier: float) -> Scale:
    """EDM-FDM's scale, see `processes.fdm.edm`.

    It falls fast at large noise, so a step there errs more than one of x0 + sigma eps does. For study only.
    """
    process = fdm.edm(multiplier)

    def value(sigma):
        return process.scale(process.inverse(sigma))

    slope = jax.grad(value)
    return Scale(partial(schedules.on_host, value), partial(schedules.on_host, slope))


SCALES = {
    "none": lambda multiplier: Scale(lambda sigma: 1.0, lambda sigma: 0.0),
    "vp": lambda multiplier: Scale(
        lambda sigma: 1 / np.sqrt(1 + sigma**2), lambda sigma: -sigma * (1 + sigma**2) ** -1.5
    ),
    "fdm": fdm_scale,
}
TIMES = ("linear", "ve", "vp")
STAGES = {"euler": 1, "heun": 2}


class Row(NamedTuple):
    """Coefficients of one step, or of all with a leading axis N."""

    hat: Array  # as heun.Row
    spread: Array
    levels: Array  # as singlestep.Row
    a: Array
    b: Array


def churned(denoise, _, x, at, *, plan):
    """Noise up to `hat`, then the deterministic step from there."""
    x, at = lifted(x, at)
    return singlestep.from_noise(denoise, None, x, at, plan=plan)


def generalised(
    solver: str = "heun",
    time: str = "linear",
    scaling: str = "none",
    multiplier: float = 2.0,
    alpha: float = 1.0,
    eps_s: float = 1e-3,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = float("inf"),
    s_noise: float = 1.0,
    rounding: Callable[[Array], Array] = same,
) -> Solver:
    """EDM's sampler in any time and scale; with the defaults it is `heun`, with churn `heun_churn`.

        f(t) = d(s x)/dt = s sigma' eps + s' x,    h = t_{i+1} - that,    with ' = d/dt
        euler: s x <- s x + h f(that);    heun: h ((1 - 1/(2 alpha)) f(that) + f(that + alpha h) / (2 alpha))

    A step onto sigma = 0 is Euler's.

    Args:
      solver: "euler" or "heun".
      time: "linear": sigma = t; "ve": sqrt(t); "vp": `vp_clock` over the range.
      scaling: "none": s = 1; "vp": s = 1 / sqrt(1 + sigma^2); "fdm": see `fdm_scale`.
      multiplier: of "fdm".
      alpha: place of the second slope: 1 Heun, 1/2 midpoint, 2/3 Ralston.
      eps_s: time of sigma_min in "vp".
      sigma_min, sigma_max: range that "vp" is made for; by default the run's own levels above zero.
      s_churn, s_min, s_max, s_noise, rounding: as `heun.heun_churn`, but noise is drawn only if s_churn > 0.
    Raises: ValueError for what is not listed; in "vp" for a run without a range.
    Source: Karras et al. 2022 (arXiv:2206.00364), Alg. 1 with eq. 4 and Table 1; alpha: Alg. 3.
    """
    _known("solver", solver, STAGES)
    _known("time", time, TIMES)
    _known("scaling", scaling, SCALES)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is the place of the second slope in a step, in (0, 1]; got {alpha}.")
    noise = churn(s_churn, s_min, s_max, s_noise, rounding)
    plan = partial(singlestep.calls, stages=STAGES[solver])
    scale = SCALES[scaling](multiplier)

    def clock(sigmas):
        if time != "vp":
            return {"linear": linear_clock, "ve": ve_clock}[time]()
        low = sigmas[sigmas > 0][-1] if sigma_min is None else sigma_min
        high = sigmas[0] if sigma_max is None else sigma_max
        if not 0 < low < high:
            raise ValueError(
                f"time vp needs 0 < sigma_min < sigma_max; got {low:g} and {high:g}: give both, or more steps."
            )
        return vp_clock(low, high, eps_s)

    def table(sigmas):
        hat, spread = noise.rows(sigmas)
        rows = coefficients(clock(sigmas), scale, alpha, plan(sigmas), hat, sigmas[1:])
        return Row(hat, spread, *rows) if s_churn else rows

    step = churned if s_churn else singlestep.from_noise
    return Solver(step, table=table, plan=plan, repeats=rounding is not same, guessed=not s_churn)


def coefficients(clock: Clock, scaling: Scale, alpha: float, plan, high, low) -> singlestep.Row:
    """The table of steps from levels high (N,) to low (N,), each of plan[i] stages."""
    scale = scaling.value

    def slopes(t, sigma):
        """Weights of x and eps in f: ds/dt and s dsigma/dt."""
        rate = clock.slope(t)
        return scaling.slope(sigma) * rate, scale(sigma) * rate

    def one(sigma, to):
        # Zero is at t = 0; with beta_min < 0 the level falls to zero once before.
        start, end = clock.inverse(sigma), clock.inverse(to) if to > 0 else 0.0
        fx, fe = slopes(start, sigma)
        h, s = end - start, scale(sigma)
        return [], [(s + h * fx) / scale(to)], [[h * fe / scale(to)]]

    def two(sigma, to):
        start, end = clock.inverse(sigma), clock.inverse(to)
        h, s = end - start, scale(sigma)
        t = start + alpha * h
        middle = to if alpha == 1 else clock.sigma(t)
        (fx, fe), (gx, ge) = slopes(start, sigma), slopes(t, middle)
        a, b = (s + alpha * h * fx) / scale(middle), alpha * h * fe / scale(middle)
        late = h / (2 * alpha)
        early = h - late
        result = np.array([s + early * fx + late * gx * a, early * fe + late * gx * b, late * ge])
        result = result / scale(to)
        return [middle], [a, result[0]], [[b], result[1:]]

    formulas = {1: one, 2: two}
    return singlestep.tabled({k: formulas[k] for k in range(1, max(plan) + 1)}, plan, high, low)


def _known(option, value, choices):
    if value not in choices:
        raise ValueError(f"generalised has {option} {', '.join(choices)}; got {value!r}.")


def vp_levels(
    sigma_min: float | None = None, sigma_max: float | None = None, eps_s: float = 1e-3
) -> Schedule:
    """EDM's vp discretization: `schedules.time`, by default over the range of `standard.vp`'s betas."""
    low, high = (float(vp_level(t)) for t in (eps_s, 1.0))
    low = low if sigma_min is None else sigma_min
    return schedules.time(low, high if sigma_max is None else sigma_max, eps_s=eps_s)


def iddpm_levels(
    sigma_min: float = 0.002,
    sigma_max: float = 81.0,
    train_steps: int = 1000,
    c1: float = precond.C1,
    c2: float = precond.C2,
) -> Schedule:
    """EDM's iddpm discretization: of improved DDPM's levels within the range, N evenly spread, then zero.

    Raises: ValueError if the range holds no level, or fewer levels than steps.
    Source: Karras et al. 2022 (arXiv:2206.00364), Table 1, third column; `precond.iddpm_table`.
    """
    trained = precond.iddpm_table(train_steps, c1, c2)
    trained = trained[(sigma_min <= trained) & (trained <= sigma_max)]

    def levels(steps: int) -> np.ndarray:
        if not 1 <= steps <= len(trained):
            raise ValueError(
                f"{len(trained)} levels of improved DDPM lie from {sigma_min:g} to {sigma_max:g}; got "
                f"{steps} steps: use from 1 to {len(trained)}, or a wider range."
            )
        picked = np.rint((len(trained) - 1) / max(steps - 1, 1) * np.arange(steps)).astype(int)
        return np.append(trained[picked], 0.0)

    return levels


SOLVERS = {"generalised": generalised}
ORDERS = {"generalised": 2}
