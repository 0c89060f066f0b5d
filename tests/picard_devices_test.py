"""A window that is spread over eight devices gives the numbers of one device."""

import os

import numpy as np
import pytest

from devices_test import results_of, start

# Prints the samples, the costs, and the shapes that one device multiplies in the network.
PROGRAM = """
import json, re
from functools import partial
from fastdiff_jax.runtime import backend
backend.setup()
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)  # differences are then of the last bits, not of a chaotic network
from jax.sharding import NamedSharding, PartitionSpec as P
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.solvers import multistep, picard, schedules, stochastic

mesh = meshes.make({"data": -1, "fsdp": 1})
generator = np.random.default_rng(0)
first, second = (jnp.asarray(generator.standard_normal(s)) for s in ((4, 32), (32, 4)))
x = jnp.asarray(generator.standard_normal((3, 4)))
draws = jnp.asarray(generator.standard_normal((40, 3, 4)))
sigmas = schedules.polynomial(0.02, 10.0)(40)

def denoise(x, sigma):
    scale = jnp.sqrt(1 + sigma**2)
    return jnp.tanh(x / scale @ first + jnp.log(sigma)) @ second / scale

def place(states):
    return jax.lax.with_sharding_constraint(states, meshes.rows(mesh))

results = {}
for name, solver in {"dpmpp_2m": multistep.dpmpp(2), "ddpm": stochastic.ddpm()}.items():
    options = dict(window=16, tolerance=1e-3, scale=picard.unit_scale(sigmas))
    windows = picard.prepare(solver, sigmas, x.dtype, **options)
    run = jax.jit(partial(picard.run, denoise, noise=lambda step, draw: draws[step], place=place))
    compiled = run.lower(10 * x, windows).compile()
    out = compiled(10 * x, windows)
    products = re.findall(r"= f64\\[([\\d,]+)\\]\\S* dot\\(", compiled.as_text())
    results[name] = {"x": np.asarray(out.x).tolist(), "passes": int(out.passes),
                     "evaluations": int(out.evaluations), "products": products}
results["devices"] = jax.device_count()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def runs():
    """The results on one and on eight devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    counts = {1: flags, 8: f"{flags} --xla_force_host_platform_device_count=8"}
    started = {count: start(PROGRAM, XLA_FLAGS=value) for count, value in counts.items()}
    return {count: results_of(process) for count, process in started.items()}


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm"])
def test_eight_devices_give_the_numbers_of_one(runs, solver):
    one, eight = runs[1][solver], runs[8][solver]
    assert (runs[1]["devices"], runs[8]["devices"]) == (1, 8)
    assert (eight["passes"], eight["evaluations"]) == (one["passes"], one["evaluations"])
    assert one["passes"] < 40  # several steps a pass
    np.testing.assert_allclose(eight["x"], one["x"], rtol=1e-9)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm"])
def test_each_device_evaluates_its_part_of_the_window(runs, solver):
    rows = {count: [int(np.prod([int(n) for n in p.split(",")])) for p in run[solver]["products"]]
            for count, run in runs.items()}  # fmt: skip
    assert rows[1] and rows[1] == [8 * size for size in rows[8]], rows
