"""PNDM and its relatives: official runs in all four methods, diffusers' PLMS with and without Runge-Kutta."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.networks import gmm
from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers import driver, multistep, pndm
from fastdiff_jax.types import Model


def replay(golden):
    params = {
        name: jnp.asarray(golden.input(key))
        for name, key in (("weights", "gmm_pi"), ("means", "gmm_mu"), ("scales", "gmm_s"))
    }
    network = gmm.build({"modes": len(params["weights"])}, params["means"].shape[1:], 0)
    denoise = jax.jit(precond.denoiser(Model(network, precond.identity()), params))
    noise = golden.input("pndm_xT")
    replay_official(golden, denoise, noise)
    replay_plms(golden, denoise, noise)


def table(golden, kind, prefix):
    """(M,) abar of the betas recorded as <prefix>_beta0 and _beta1."""
    ends = (float(golden.input(f"{prefix}_beta{i}")) for i in (0, 1))
    return discrete.alphas_cumprod(kind, discrete.STEPS, *ends)


def replay_official(golden, denoise, noise):
    abar = table(golden, "linear", "pndm")
    labels = discrete.pndm_labels(int(golden.input("pndm_steps")), len(abar))
    solvers = {
        "ddim": multistep.euler("noise"),
        "spndm": pndm.s_pndm(),
        "fpndm": pndm.pndm(discrete.halfway(abar)),
        "fon": pndm.fon(abar),
    }
    for name, solver in solvers.items():
        states, levels, _ = run(denoise, solver, noise, abar[labels + 1])
        golden.check(f"pndm_{name}_traj", states)
        told = discrete.calls(labels, solver.plan(discrete.sigmas(abar[labels + 1])))
        golden.check(f"pndm_{name}_calls", told)
        shared = abar[np.floor(told).astype(int) + 1]  # by all labels within one
        np.testing.assert_allclose(levels, discrete.sigmas(shared), rtol=1e-12)


def replay_plms(golden, denoise, noise):
    abar = table(golden, "scaled_linear", "para")
    golden.check("sd_alphas_cumprod_last10", abar[-10:])
    label_of = discrete.process(abar).inverse
    steps = len(golden.arrays["plms_skip_timesteps"]) - 1  # one label stands twice
    labels = discrete.plms_labels(steps, len(abar))
    for name, solver in (
        ("skip", pndm.plms()),
        ("prk", pndm.pndm(discrete.halfway_twice(abar))),
    ):
        states, levels, shown = run(denoise, solver, noise, abar[np.maximum(labels, 0)])
        # The scheduler's state after a call is what the next one is shown.
        golden.check(f"plms_{name}_traj", np.concatenate([shown, states[-1:]]))
        golden.check(f"plms_{name}_timesteps", len(abar) * label_of(levels) - 1)
        plan = solver.plan(discrete.sigmas(abar[np.maximum(labels, 0)]))
        golden.check(f"plms_{name}_timesteps", discrete.calls(labels, plan, whole=True))


def run(denoise, solver, noise, abar):
    """States (N+1,B,d) at levels abar (N+1,), and of every network call its sigma and what it was shown.

    All are in the process's coordinates z = sqrt(abar) x.
    """
    sigmas, scale = discrete.sigmas(abar), np.sqrt(abar)[:, None, None]
    start, calls = jnp.asarray(noise / scale[0]), []

    def watched(x, sigma):
        with jax.disable_jit(False):
            calls.append((float(sigma), x / jnp.sqrt(1 + sigma**2)))
            return denoise(x, sigma)

    with jax.disable_jit():  # loops run in Python then, so every call is seen with its values
        states = driver.sample(watched, solver, start, sigmas, trace=True).states
    levels, shown = zip(*calls)
    return states * scale, np.array(levels), np.stack(shown)
