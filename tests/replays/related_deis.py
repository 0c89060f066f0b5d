"""DEIS, iPNDM and their torch port: grids, coefficients and runs in the coordinates of both codes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.networks import gmm
from fastdiff_jax.processes.standard import vp
from fastdiff_jax.solvers import adams, deis, driver, schedules
from fastdiff_jax.types import Model

GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}
KIND = re.compile(r"deis_(tab|rhoab)(\d)_(coef_exact|x0_exact|coef_t2|x0)")
PORT = re.compile(r"edm_(ipndm|ipndmv|deistab|rhoab)(\d)_(coef|traj|coef_exact|traj_exact)")
HISTORY = 4
# What the code's own quadrature, a left Riemann sum, is worth; the keys named exact have none of it.
LOOSE = {"tab": 2e-3, "rhoab": 3e-4}


def replay(golden):
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    network = gmm.build({"modes": len(params["weights"])}, params["means"].shape[1:], 0)
    denoise = precond.denoiser(Model(network, precond.identity()), params)
    # Steps are an argument and histories equally long, so all runs of one length are one program.
    run = jax.jit(lambda x, steps: driver.run(denoise, x, steps, trace=True).states)

    def states(x, solver, sigmas):
        return run(x, driver.prepare(solver, sigmas, x.dtype))

    replay_vp(golden, states)
    replay_port(golden, states)


def replay_vp(golden, states):
    """The JAX code: z = sqrt(abar) x on a VP process, r counts the predictions before the current one."""
    betas = [float(golden.input(key)) for key in ("deis_beta0", "deis_beta1")]
    betas = betas[1] - betas[0], betas[0]
    process = vp(*betas)
    ends = jnp.stack([jnp.asarray(golden.input(key)) for key in ("deis_t0", "deis_t1")])
    low, high = np.asarray(process.sigma(ends))
    steps = int(golden.input("deis_steps"))

    def grid(kind, power):
        if kind == "t":
            curve = schedules.time(low, high, power, beta_d=betas[0], beta_min=betas[1], zero=False)
        elif kind == "log":
            curve = schedules.logsnr(low, high, zero=False)
        else:
            curve = schedules.polynomial(low, high, power, zero=False)
        return curve(steps)

    for key in golden.keys("deis_ts_"):
        kind, power = re.fullmatch(r"deis_ts_([a-z]+)(\d+)", key).groups()
        golden.check(key, process.inverse(jnp.asarray(grid(kind, float(power)))))

    def scale(sigmas):
        return np.asarray(process.scale(process.inverse(jnp.asarray(sigmas))))

    def final(solver, sigmas):
        x = jnp.asarray(golden.input("deis_xT")) / scale(sigmas[0])
        return states(x, solver, sigmas)[-1] * scale(sigmas[-1])

    made = {
        "tab": partial(deis.tab, beta_d=betas[0], beta_min=betas[1], history=HISTORY),
        "rhoab": partial(deis.rhoab, history=HISTORY),
    }
    even, quadratic = grid("t", 1.0), grid("t", 2.0)
    golden.check("deis_psi_t2", scale(quadratic[1:]) / scale(quadratic[:-1]))
    golden.check("deis_ipndm_x0", final(adams.ipndm(4, HISTORY), even))
    for key in golden.keys("deis_"):
        if not (found := KIND.fullmatch(key)):
            continue
        kind, order, what = found[1], int(found[2]) + 1, found[3]
        solver = made[kind](order)
        if what.startswith("x0"):
            tolerance = dict(rtol=1e-8) if what == "x0_exact" else dict(rtol=0, atol=LOOSE[kind])
            golden.check(key, final(solver, quadratic), **tolerance)
        else:
            weights = solver.table(quadratic).b[:, :order]
            weights = weights * scale(quadratic[1:])[:, None] if kind == "tab" else weights
            golden.check(key, weights, rtol=1e-8 if what == "coef_exact" else 3e-4)


def replay_port(golden, states):
    """The torch port, in the coordinates of this package; the order counts all predictions combined."""
    sigmas = golden.input("edm_sigmas")
    x = sigmas[0] * jnp.asarray(golden.input("edm_latents"))
    makers = {
        "ipndm": partial(adams.ipndm, history=HISTORY),
        "ipndmv": partial(adams.ipndm_v, weights="published", history=HISTORY),
        "deistab": partial(deis.tab, quadrature="published", history=HISTORY),
        "deistab exact": partial(deis.tab, history=HISTORY),
        "rhoab exact": partial(deis.rhoab, history=HISTORY),
    }
    for key in golden.keys("edm_"):
        if not (found := PORT.fullmatch(key)):
            continue
        what, _, exact = found[3].partition("_")
        solver = makers[f"{found[1]} {exact}".strip()](int(found[2]))
        if what == "traj":
            golden.check(key, states(x, solver, sigmas))
        else:
            weights, expected = solver.table(sigmas).b, golden.arrays[key]
            weights = weights[:, : expected.shape[1]]
            if not exact:  # the port's first step is Euler's without coefficients
                assert weights[0, 0] == sigmas[1] - sigmas[0] and not weights[0, 1:].any()
                weights[0] = 0
            golden.check(key, weights)
