"""GITS: costs of jumps along a teacher's trajectories, the paths found through them, and what these sample."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond, registry
from fastdiff_jax.networks import gmm
from fastdiff_jax.solvers import driver, gits, schedules
from fastdiff_jax.types import Model

GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}
SOLVERS = {"ipndm": "ipndm_4"}  # the file's name -> ours, where they differ
STUDENT = "ipndm_4"
COST = re.compile(r"gits/(\w+)_(dev|l1|l2)/cost")
FOUND = re.compile(r"gits/(\w+_(?:dev|l1|l2))_c([\d.]+)_n(\d+)(_afs)?/dp_list")
TOY = re.compile(r"gits/dp_toy/c([\d.]+)_n(\d+)")


def solver_of(name):
    return registry.entries("solvers", "SOLVERS")[SOLVERS.get(name, name)]()


def replay(golden):
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    network = gmm.build({"modes": len(params["weights"])}, params["means"].shape[1:], 0)
    denoise = precond.denoiser(Model(network, precond.identity()), params)
    base = schedules.polynomial(
        float(golden.input("sigma_min")), float(golden.input("sigma_max")), 7.0, zero=False
    )
    check_deviation(golden)
    check_toy(golden)

    @cache
    def traces(teacher, fine):
        """A teacher, its levels, and a trace of each round; metrics share them."""
        solver, sigmas = solver_of(teacher), base(fine)
        gits.check_fine_solver(solver, sigmas)
        run = jax.jit(lambda z: driver.sample(denoise, solver, sigmas[0] * z, sigmas, trace=True))
        return solver, sigmas, [run(z) for z in jnp.asarray(golden.input("gits/warmup_latents"))]

    warm = {}
    for key in golden.keys("gits/"):
        if match := COST.fullmatch(key):
            case = traces(match[1], golden.arrays[key].shape[0] - 1)
            warm["_".join(match.groups())] = (*case, check_cost(golden, key, match[2], *case[1:]))
    for key in golden.keys("gits/"):
        if match := FOUND.fullmatch(key):
            check_found(golden, key, *match.groups(), warm, denoise)


def check_deviation(golden):
    points = jnp.asarray(golden.input("gits/dev_in"))
    golden.check("gits/dev_out", gits.deviation(points[1:-1], points[0], points[-1]).T)


def check_toy(golden):
    matrix = golden.input("gits/dp_toy/cost")
    for key in golden.keys("gits/dp_toy/"):
        if match := TOY.fullmatch(key):
            golden.check(key, gits.path(matrix, int(match[2]) - 1, float(match[1])), rtol=0)


def check_cost(golden, key, metric, sigmas, traces):
    """Averaged costs, and how many rounds that took."""
    every = list(map(jax.jit(partial(gits.costs, sigmas=sigmas, metric=metric)), traces))
    # The file may hold more rounds than were used; with any other number the mean is far off.
    means = np.cumsum(every, 0) / np.arange(1, len(every) + 1)[:, None, None]
    used = 1 + int(np.abs(means - golden.arrays[key]).max((1, 2)).argmin())
    batch = traces[0].states.shape[1]
    golden.check("gits/rounds", gits.rounds(used * batch, batch), rtol=0)
    golden.check(key, means[used - 1], rtol=0, atol=1e-10)
    return means[used - 1], used


def check_found(golden, key, case, coeff, stamps, afs, warm, denoise):
    solver, sigmas, _, (matrix, used) = warm[case]
    steps, coeff, student = int(stamps) - 1, float(coeff), solver_of(STUDENT)
    rest, latents = key.removesuffix("dp_list"), jnp.asarray(golden.input("gits/warmup_latents"))[:used]
    search = partial(
        gits.search, denoise, latents, sigmas, steps, solver=solver, metric=case.rpartition("_")[2], coeff=coeff
    )
    if afs:
        golden.check(key, np.searchsorted(-sigmas, -search(student=student)), rtol=0)
        return
    golden.check(key, gits.path(matrix, steps, coeff), rtol=0)
    if rest + "t_steps" in golden.arrays:
        found = search()
        golden.check(rest + "t_steps", found)
        x = found[0] * jnp.asarray(golden.input("latents"))
        golden.check(rest + "x0", jax.jit(lambda x: driver.sample(denoise, student, x, found))(x))
