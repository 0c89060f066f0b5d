"""DEIS-rhoRK: classical Runge-Kutta methods in sigma, on the official grid and in the coordinates of VP."""

import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.processes import standard
from fastdiff_jax.solvers import driver, schedules
from replays.related_scheduler import mixture

PREFIX, SUFFIX = "deis_rhork_", "_x0"
OWN = {"1euler": "euler", "2heun": "heun"}


def replay(golden):
    denoise, solvers = mixture(golden), registry.entries("solvers", "SOLVERS")
    start, end = float(golden.input("deis_t1")), float(golden.input("deis_t0"))
    beta0, beta1 = float(golden.input("deis_beta0")), float(golden.input("deis_beta1"))
    process = standard.vp(beta1 - beta0, beta0)
    high, low = (float(process.sigma(jnp.asarray(t))) for t in (start, end))
    steps = int(golden.input("deis_steps"))
    sigmas = schedules.polynomial(low, high, 7.0, zero=False)(steps)
    golden.check("deis_ts_rho7", process.inverse(jnp.asarray(sigmas)))
    x = jnp.asarray(golden.input("deis_xT")) / process.scale(jnp.asarray(start))
    for key in golden.keys(PREFIX):
        name = key.removeprefix(PREFIX).removesuffix(SUFFIX)
        solver = solvers[OWN.get(name, f"rhork_{name}")]()
        reached = driver.sample(denoise, solver, x, sigmas)
        golden.check(key, np.asarray(reached) * float(process.scale(jnp.asarray(end))))
