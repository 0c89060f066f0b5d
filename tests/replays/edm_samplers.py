"""EDM's sampler with and without churn: every network call of a run, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.networks import gmm
from fastdiff_jax.solvers import named, schedules
from fastdiff_jax.types import Model

CHURN = ("S_churn", "S_min", "S_max", "S_noise")
GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}


def replay(golden):
    latents = golden.input("latents")
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    network = gmm.build({"modes": len(params["weights"])}, latents.shape[1:], 0)
    denoise = jax.jit(precond.denoiser(Model(network, precond.identity()), params))
    for key in golden.keys("edm_"):
        case, _, last = key.partition("/")
        if last == "cfg":
            replay_case(golden, case, denoise, jnp.asarray(latents))


def trained(case):
    """The preconditioner whose range and rounding a case has; files say it by the case's name only."""
    if case.startswith("edm_iddpm"):
        return precond.iddpm()
    if case.startswith("edm_clamped"):
        return precond.identity()._replace(sigma_min=0.02, sigma_max=100.0)
    return precond.identity()


def replay_case(golden, case, denoise, latents):
    config = golden.config(f"{case}/cfg")
    nfe = 2 * config.pop("num_steps") - 1
    options = {name.lower(): config.pop(name) for name in CHURN if name in config}
    # The recorded sampler cuts what it is asked for to the model's range; ours refuses it.
    schedule = schedules.clipped({"name": "polynomial", "zero": True, **config}, trained(case))
    stochastic = bool(golden.keys(f"{case}/noise"))
    common = dict(schedule=schedule, precond=trained(case))
    noise, calls = None, []
    if stochastic:
        sampler = named.sampler("heun_churn", nfe, **common, **options)
        recorded = jnp.asarray(golden.input(f"{case}/noise"))

        def noise(step, draw):
            assert draw == 0, "one draw a step"
            return recorded[step]

    else:
        assert not options.get("s_churn"), f"{case}: churn without recorded noise"
        sampler = named.sampler("heun", nfe, repeats=True, **common)

    def watched(x, sigma):
        with jax.disable_jit(False):
            calls.append((x, sigma, denoise(x, sigma)))
        return calls[-1][-1]

    final = jax.jit(lambda z: named.generate(denoise, sampler, z, noise=noise))(latents)
    golden.check(f"{case}/x_final", final)
    with jax.disable_jit():  # loops run in Python then, so every call is seen with its values
        named.generate(watched, sampler, latents, noise=noise)
    for key, values in zip(("net_x", "net_sigma", "net_D"), zip(*calls, strict=True), strict=True):
        golden.check(f"{case}/{key}", np.stack(values))
