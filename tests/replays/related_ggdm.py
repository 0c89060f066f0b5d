"""GGDM: DDIM as a member of the family, a perturbed sampler, its marginals, and the kernel distance."""

import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.losses import distances
from fastdiff_jax.networks import gmm
from fastdiff_jax.solvers import driver, learned
from fastdiff_jax.types import Model

GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}


def replay(golden):
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    alpha, sigma = golden.input("gg_alpha"), golden.input("gg_sigma")
    network = gmm.build({"modes": len(params["weights"])}, golden.input("gg_xK").shape[1:], 0)
    denoise = precond.denoiser(Model(network, precond.identity()), params)

    m, s = learned.ddim_coefficients(alpha, sigma)
    golden.check("gg_ddim_M", m)
    assert not s.any()
    golden.check("gg_ddim_traj", trajectory(golden, denoise, m, s))
    m, s = golden.input("gg_M"), golden.input("gg_s")
    golden.check("gg_traj", trajectory(golden, denoise, m, s))
    for key, value in zip(("gg_marg_mean", "gg_marg_var"), learned.marginals(m, s, alpha, sigma)):
        golden.check(key, value)
    features = (jnp.asarray(golden.input(f"gg_feat_{name}")) for name in "xy")
    golden.check("gg_kid", distances.kernel_distance(*features))


def trajectory(golden, denoise, m, s):
    """(K+1,B,d) states from level K to 0 in the process's coordinates, z = alpha x."""
    alpha, sigma, noise = (golden.input(f"gg_{name}") for name in ("alpha", "sigma", "noise"))
    by_step = jnp.asarray(noise[::-1])  # recorded by the level made
    solver = learned.ggdm(learned.from_vp(m, s, alpha))
    x = jnp.asarray(golden.input("gg_xK") / alpha[-1])
    levels = (sigma / alpha)[::-1]
    states = driver.sample(denoise, solver, x, levels, noise=lambda i, draw: by_step[i], trace=True).states
    return np.asarray(states) * alpha[::-1, None, None]
