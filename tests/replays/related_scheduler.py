"""The Sampler Scheduler: where each segment of a plan ends, and what the plan costs."""

import warnings

import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.networks import gmm
from fastdiff_jax.solvers import driver, scheduled
from fastdiff_jax.types import Model

NAMES = {"dpm2": "dpm_2", "dpm2_a": "dpm_2_a"}  # the others are called as here
GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}


def mixture(golden):
    """The common toy's exact denoiser."""
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    network = gmm.build({"modes": len(params["weights"])}, params["means"].shape[1:])
    return precond.denoiser(Model(network, precond.identity()), params)


def replay(golden):
    denoise, sigmas = mixture(golden), golden.input("ss_sigmas")
    x = sigmas[0] * jnp.asarray(golden.input("ss_latents"))
    noise = jnp.asarray(golden.input("ss_noise"))
    for key in golden.keys("ss"):
        if not key.endswith("_plan"):
            continue
        case = key.removesuffix("_plan")
        pairs = [str(part).split(":") for part in golden.input(key)]
        segments = [(NAMES.get(name, name), int(steps)) for name, steps in pairs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # recorded plans may end in a noisy segment
            solver = scheduled.scheduled(segments)
        trace = driver.sample(
            denoise, solver, x, sigmas, noise=lambda step, draw: noise[step], trace=True
        )
        ends = np.cumsum([0] + [steps for _, steps in segments])
        golden.check(f"{case}_segment_ends", trace.states[ends])
        golden.check(f"{case}_nfe", driver.evaluations(solver, sigmas), rtol=0)
