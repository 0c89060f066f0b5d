"""CLD's training losses: hybrid and denoising score matching of the velocity (arXiv:2112.07068)."""

import jax
import jax.numpy as jnp

from fastdiff_jax.losses.matching import Objective
from fastdiff_jax.precond import MATCHINGS, Velocity, velocity
from fastdiff_jax.processes import cld
from fastdiff_jax.rng import stream
from fastdiff_jax.types import Array, PhaseProcess, expand

WEIGHTINGS = ("reweightedv2", "reweightedv1", "likelihood")


def weight(process: PhaseProcess, weighting: str, t: Array, lower: Array) -> Array:
    """(B,) weights at t (B,) of the error of the velocity's noise; `lower` (B,2,2) is the kernel's factor.

        reweightedv2: 1;    reweightedv1: Gamma beta(t);    likelihood: Gamma beta(t) l_t^2
    """
    if weighting == "reweightedv2":
        return jnp.ones_like(t)
    rate = process.diffusion(t)[..., 1, 1] ** 2 / 2
    return rate if weighting == "reweightedv1" else rate * cld.precision(lower) ** 2


def objective(matching: str = "hsm", weighting: str = "reweightedv2") -> Objective:
    """w(t) (alpha(z_t, t) - eps_v)^2, elementwise in the images' channels; z_t as `processes.cld.perturb`.

    Args:
      matching: the model's own: "hsm", or "dsm", which draws the velocities that the process starts from.
      weighting: see `weight`; "reweightedv2" is the one for images.
    Raises: ValueError for another matching or weighting; from `bind`, if the model's matching is another.
    Source: arXiv:2112.07068, section 3.2; with l_t as in the authors' code.
    """
    for name, value, known in (("matching", matching, MATCHINGS), ("weighting", weighting, WEIGHTINGS)):
        if value not in known:
            raise ValueError(f"the objective cld has {name} {', '.join(known)}; got {value!r}.")

    def draw(key, shape):
        double = (*shape[:-1], 2 * shape[-1])
        draws = {
            "level": jax.random.uniform(stream(key, "level"), shape[:1]),
            "noise": jax.random.normal(stream(key, "noise"), double),
        }
        if matching == "dsm":
            draws["velocity"] = jax.random.normal(stream(key, "velocity"), shape)
        return draws

    def bind(*bound):
        bound = velocity(*bound)
        if bound.matching != matching:
            raise ValueError(
                f"the objective cld has matching {matching}, its model {bound.matching}; use one for both."
            )
        return bound

    def loss(bound: Velocity, x0, draws, *, step=None):
        del step
        process, noise = bound.process, draws["noise"]
        t = process.t_min + (process.t_max - process.t_min) * draws["level"]
        v0 = (process.gamma * process.mass) ** 0.5 * draws["velocity"] if matching == "dsm" else None
        state = cld.perturb(process, x0, t, noise, v0)
        error = bound.noise(state, t) - cld.split(noise)[1]
        return expand(weight(process, weighting, t, bound.lower(t)), x0) * error**2

    return Objective(draw, loss, bind)


OBJECTIVES = {"cld": objective}
