"""Schedules of the solver zoo and the discrete map behind one of them."""

import re

import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers import schedules

NAMES = {"poly": "polynomial", "logsnr": "logsnr", "uni": "time", "disc": "discrete"}


def replay(golden):
    abar = discrete.alphas_cumprod("scaled_linear", len(golden.arrays["disc/alphas_cumprod"]))
    golden.check("disc/alphas_cumprod", abar)
    process = discrete.process(abar)
    golden.check("disc/sigma_of_t", process.sigma(jnp.asarray(golden.input("disc/t_in"))))
    golden.check("disc/t_of_sigma", process.inverse(jnp.asarray(golden.input("disc/sigma_in"))))
    model = precond.discrete(steps=len(abar))
    golden.check("disc/sigma_min", model.sigma_min)
    golden.check("disc/sigma_max", model.sigma_max)
    told = model.coefficients(jnp.asarray(golden.arrays["disc/sigma_in"])).noise
    np.testing.assert_allclose(told, len(abar) * golden.arrays["disc/t_of_sigma"] - 1, atol=1e-9)
    for key in golden.keys("sched/"):
        golden.check(key, schedule(golden, key)(len(golden.arrays[key]) - 1))


def schedule(golden, key):
    """The schedule of a key sched/<name><rho>_n<stamps>."""
    kind, rho, stamps = re.fullmatch(r"sched/([a-z]+)([\d.]*)_n(\d+)", key).groups()
    assert int(stamps) == len(golden.arrays[key])
    config = {"name": NAMES[kind], "zero": False} | ({"rho": float(rho)} if rho else {})
    for end in ("sigma_min", "sigma_max"):
        config[end] = float(golden.input(f"disc/{end}" if kind == "disc" else end))
    return schedules.build(config)
