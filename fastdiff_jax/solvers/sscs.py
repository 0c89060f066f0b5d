"""Samplers of CLD: symmetric splitting (SSCS), Euler-Maruyama and the probability-flow ODE, on the one driver.

A step carries a state u = (x, v) (B,...,2C) from one model time down to the next; what the driver calls a
denoiser is here the velocity score s(u, t) (B,...,C), and a level is a time. With ' along sampler time,

    x' = -beta v / M,    v' = beta x + beta Gamma v / M + push beta Gamma s,    push 2 and noise: SDE, 1: ODE

A last, noise-free Euler step of the SDE leads from the last time to zero. Velocities are dropped at the end.
Source: Dockhorn et al. 2022 (arXiv:2112.07068), section 3.3 and appendix D.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.precond import velocity
from fastdiff_jax.processes import cld
from fastdiff_jax.rng import normal_per_image
from fastdiff_jax.solvers import driver
from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.solvers.schedules import on_host
from fastdiff_jax.solvers.singlestep import TABLEAUS, Tableau
from fastdiff_jax.types import Array, Model, PhaseProcess, Sampler, Schedule, Solver, expand

Score = Callable[[Array, Array], Array]  # (state (B,...,2C), t () or (B,)) -> (B,...,C)


class Splitting(NamedTuple):
    """A step of SSCS, or all with a leading axis N."""

    linear: Array  # (2,2,2) of both half steps: what moves the mean
    lower: Array  # (2,2,2) Cholesky factors of their noise
    push: Array  # () of the score in between
    pull: Array  # () of the velocity there


class Kick(NamedTuple):
    """A step of Euler-Maruyama, or all with a leading axis N."""

    linear: Array  # (2,2)
    push: Array  # () of the score
    spread: Array  # () standard deviation of the velocity's noise


class Stages(NamedTuple):
    """A Runge-Kutta step of S stages, or all with a leading axis N."""

    times: Array  # (S-1,) of the stages after the first
    linear: Array  # (S,2,2) slope of each stage, times the step
    push: Array  # (S,)
    a: Array  # (S,S) weights of the slopes in the points after each stage, and at the end


def moved(score: Array, state: Array) -> Array:
    """The score as a change of the state: zero in x."""
    return jnp.concatenate([jnp.zeros_like(score), score.astype(state.dtype)], -1)


def splitting(score, _, u, at, *, plan):
    """Half a step of the exactly solvable part, the score, and the other half."""
    u = cld.apply(at.row.linear[0], u) + cld.apply(at.row.lower[0], _noise(at, 0))
    change = expand(at.row.push, u) * predict(score, u, at) + expand(at.row.pull, u) * cld.split(u)[1]
    u = u + moved(change, u)
    return cld.apply(at.row.linear[1], u) + cld.apply(at.row.lower[1], _noise(at, 1)), None


def kicked(score, _, u, at, *, plan):
    """Euler's step and noise on the velocity; the position's half of the draw is not used."""
    change = expand(at.row.push, u) * predict(score, u, at)
    change = change + expand(at.row.spread, u) * cld.split(_noise(at, 0))[1]
    return u + cld.apply(at.row.linear, u) + moved(change, u), None


def staged(score, _, u, at, *, plan):
    """A Runge-Kutta step of the probability-flow ODE, of `plan` stages."""
    point, slopes, found = u, [], predict(score, u, at)
    for j in range(plan):
        found = found if j == 0 else score(point, at.row.times[j - 1])
        slopes.append(cld.apply(at.row.linear[j], point) + moved(expand(at.row.push[j], u) * found, u))
        # Not a dot product, which accelerators may run in bfloat16.
        point = u + sum(expand(at.row.a[j, i], u) * slope for i, slope in enumerate(slopes))
    return point, None


def _noise(at, index):
    if at.noise is None:
        raise ValueError(
            "sscs and em draw noise at every step; pass noise, e.g. driver.per_image(keys, shape)."
        )
    return at.noise(index)


def flow(process: PhaseProcess, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ODE's slope at model times t (...): what multiplies the state (...,2,2), and the score (...)."""
    diffusion = on_host(process.diffusion, t)[..., 1, 1]
    return -on_host(process.drift, t), diffusion**2 / 2


def sscs(process: PhaseProcess, repeat_interval: bool = False, stabilizer: float = 0.0) -> Solver:
    """Symmetric splitting: half A, full S, half A, one network call a step.

        A: x' = e^(-b) ((1 + b) x - w b v) + L noise, ...: exact, with b the clock of half a step
        S: v' = v + 2 Gamma beta(t) h (s(u, t) + v / M)

    The authors evaluate the score at the start of a step, which makes it of first order.

    Args:
      repeat_interval: both halves take the clock of the first one, as in the authors' code; exact for constant
        beta only.
      stabilizer: added to the variances of A's noise.
    Raises: ValueError for a negative stabilizer.
    """
    if stabilizer < 0:
        raise ValueError(f"stabilizer is added to variances, so not negative; got {stabilizer}.")
    w = 1 / math.sqrt(process.mass)

    def table(times):
        middle = (times[:-1] + times[1:]) / 2
        clocks = [on_host(process.clock, t) for t in (times[:-1], middle, times[1:])]
        first, second = clocks[0] - clocks[1], clocks[1] - clocks[2]
        b = w * np.stack([first, first if repeat_interval else second], 1)
        phi = on_host(functools.partial(cld.transition, mass=process.mass), b)
        # The velocity's sign is reversed: time runs backward.
        linear = phi * np.array([[1, -1], [-1, 1]])
        noise = functools.partial(cld.factor, mass=process.mass, gamma=0.0, eps=stabilizer, sign=-1.0)
        push = 2 * flow(process, times[:-1])[1] * -np.diff(times)
        return Splitting(linear, on_host(noise, b), push, push / process.mass)

    return Solver(splitting, table=table)


def euler_maruyama(process: PhaseProcess) -> Solver:
    """Euler's step of the reverse SDE, one network call a step."""

    def table(times):
        steps, (linear, push) = -np.diff(times), flow(process, times[:-1])
        return Kick(linear * steps[:, None, None], 2 * push * steps, np.sqrt(2 * push * steps))

    return Solver(kicked, table=table)


HEUN = Tableau(((1,),), (1 / 2, 1 / 2))


def ode(process: PhaseProcess, method: str = "heun") -> Solver:
    """A Runge-Kutta step of the probability-flow ODE, as many network calls as stages.

    The authors use an adaptive solver; a fixed number of steps has a cost that is known. Steps are explicit,
    so they must resolve the velocities at small times, which relax at the rate beta Gamma / (gamma M), by
    default 400: on the digits, 10 quadratic steps of Heun diverge and 25 do not.

    Args:
      method: "heun", or one of `singlestep.TABLEAUS`, such as "4rk".
    Raises: ValueError for another method.
    """
    methods = {"heun": HEUN} | TABLEAUS
    if method not in methods:
        raise ValueError(f"the flow has methods {', '.join(methods)}; got {method!r}.")
    tableau = methods[method]
    stages = len(tableau.weights)
    a = np.array([[*row, *[0.0] * (stages - len(row))] for row in (*tableau.points, tableau.weights)])

    def table(times):
        steps = -np.diff(times)[:, None]
        nodes = np.concatenate([times[:-1, None], times[:-1, None] - steps * a[:-1].sum(1)], 1)
        linear, push = flow(process, nodes)
        weights = np.broadcast_to(a, (len(steps), *a.shape))
        return Stages(nodes[:, 1:], linear * steps[..., None, None], push * steps, weights)

    return Solver(staged, table=table, plan=lambda times: (stages,) * (len(times) - 1))


# (process, options) -> Solver: not in SOLVERS, as these step a state and not x0 + sigma eps.
PHASE_SOLVERS = {"sscs": sscs, "em": euler_maruyama, "ode": ode}
SPACINGS = ("quadratic", "linear")


def times(process: PhaseProcess, spacing: str = "quadratic", end: float = 1e-3) -> Schedule:
    """N -> (N+1,) model times from the process's last one T to `end`, host float64.

        linear: T - (T - end) i / N;    quadratic: end + (T - end) (1 - i / N)^2, finer at little noise

    Raises: ValueError for another spacing, and an end outside the process.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"the times of CLD are spaced {' or '.join(SPACINGS)}; got {spacing!r}.")
    if not process.t_min <= end < process.t_max:
        raise ValueError(
            f"the process runs from {process.t_min:g} to {process.t_max:g}; sampling cannot end at t = {end:g}."
        )

    def levels(steps: int) -> np.ndarray:
        left = 1 - np.arange(steps + 1) / steps
        return end + (process.t_max - end) * (left if spacing == "linear" else left**2)

    return levels


def prior(process: PhaseProcess, latents: Array) -> Array:
    """States (B,...,2C) at the process's end from standard normal ones: N(0, 1) x N(0, M)."""
    x, v = cld.split(latents)
    return jnp.concatenate([x, math.sqrt(process.mass) * v], -1)


def denoised(process: PhaseProcess, score: Score, u: Array, t: float) -> Array:
    """The noise-free Euler step of the reverse SDE from model time t to zero, one network call. t: host."""
    linear, push = flow(process, np.float64(t))
    found = score(u, jnp.asarray(t, u.dtype))
    return u + cld.apply(t * linear, u) + moved(2 * t * push * found, u)


class Request(NamedTuple):
    """A sampler of CLD as a config asks for it; options of its solver come besides."""

    nfe: int
    spacing: str = "quadratic"
    end: float = 1e-3
    denoise: bool = True  # end with `denoised`, at the cost of one call


def samplers(
    requests: Mapping[str, Mapping], model: Model, shape: tuple[int, ...], weights: str | None = None
) -> dict[str, Sampler]:
    """Samplers of one CLD model by their names in the report; see `sampling.samplers`, which calls this.

    Raises: ValueError for unknown solvers and options, and calls that a solver cannot make.
    """
    return {name: _sampler(dict(request), model, shape, weights) for name, request in requests.items()}


def _sampler(request, model, shape, weights):
    process = model.precond.process
    name = request.pop("name", None)
    own = {key: request.pop(key) for key in list(request) if key not in Request._fields}
    request = registry.options(Request, request, f"the CLD sampler {name}")
    made = {key: functools.partial(factory, process) for key, factory in PHASE_SOLVERS.items()}
    solver = registry.choose(made, own | {"name": name}, "CLD sampler")
    schedule = times(process, request.spacing, request.end)
    calls = driver.evaluations(solver, schedule(1))
    steps, rest = divmod(request.nfe - request.denoise, calls)
    if steps < 1 or rest:
        low = max(steps, 1) * calls + request.denoise
        raise ValueError(
            f"{name} cannot make exactly {request.nfe} network calls; use {low} or {low + calls}."
        )
    levels = schedule(steps)

    def generate(prepared, params, frozen, keys, cond):
        bound = velocity(model, params if weights is None else frozen[weights], cond)
        double = (*shape[:-1], 2 * shape[-1])
        u = prior(process, normal_per_image(keys, double))
        u = driver.run(bound.score, u, prepared, noise=driver.per_image(keys, double))
        if request.denoise:
            u = denoised(process, bound.score, u, request.end)
        return cld.split(u)[0]

    return Sampler(request.nfe, jax.tree_util.Partial(generate, driver.prepare(solver, levels)))
