"""The solver zoo's runs: final states, calls, trajectories, DEIS' coefficients; and thresholding alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import guidance, precond, registry
from fastdiff_jax.networks import gmm
from fastdiff_jax.solvers import driver, named, schedules
from fastdiff_jax.types import Model

GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}
KEY = re.compile(
    r"(?P<solver>[a-z\d]+)_(?P<grid>[a-z]+)(?P<rho>[\d.]*)_n(?P<stamps>\d+)(?P<options>(_[a-z0-9.]+)*)"
    r"/(?P<what>x0|nfe|traj|coeffs)"
)
# The file's names of solvers, as patterns, ours, and the options that make ours what was recorded.
SOLVERS = (
    (r"(euler|heun)", r"\1", {}),
    (r"dpm2", "dpm_2", {}),
    (r"dpmpp(\d)", r"dpmpp_\1m", {}),
    (r"ipndm(\d)", r"ipndm_\1", {}),
    (r"ipndmv(\d)", r"ipndm_v_\1", {}),
    (r"ipndmvref(\d)", r"ipndm_v_\1", {"weights": "published"}),
    (r"deistab(\d)", r"deis_tab_\1", {"quadrature": "published"}),
    (r"deisrho(\d)", r"deis_rhoab_\1", {}),
    (r"deisrho(\d)ref", r"deis_rhoab_\1", {"weights": "stale"}),
    (r"unipc(\d)bh1", r"unipc_\1", {"variant": "bh1"}),
    (r"unipc(\d)bh2", r"unipc_\1", {"variant": "bh2"}),
)
THRESHOLDED = ("dpmpp", "unipc")  # the recorded code does so whenever these predict data
DENSE = 2049  # stamps of the near-exact run, which the file does not say


def replay(golden):
    latents = jnp.asarray(golden.input("latents"))
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    network = gmm.build({"modes": len(params["weights"])}, latents.shape[1:], 0)
    denoise = jax.jit(precond.denoiser(Model(network, precond.identity()), params))
    cases = {}
    for key in golden.keys():
        if found := KEY.fullmatch(key):
            cases.setdefault(key.partition("/")[0], {})[found["what"]] = found
    assert cases, "the file holds no runs"
    for case, wanted in cases.items():
        replay_case(golden, case, wanted, denoise, latents)
    replay_dense(golden, denoise, latents)
    thresholded = guidance.dynamic_threshold(jnp.asarray(golden.input("thresh/in")))
    golden.check("thresh/out", thresholded, rtol=0, atol=1e-9)


def levels(golden, found):
    """The levels of a run; those of the discrete model are recorded, and another replay checks them."""
    low, high = (float(golden.input(key)) for key in ("sigma_min", "sigma_max"))
    steps, rho = int(found["stamps"]) - 1, float(found["rho"] or 1)
    if found["grid"] == "disc":
        return golden.arrays[f"sched/disc{found['rho']}_n{found['stamps']}"]
    grids = {
        "poly": lambda: schedules.polynomial(low, high, rho, zero=False),
        "logsnr": lambda: schedules.logsnr(low, high, zero=False),
        "uni": lambda: schedules.time(low, high, rho, zero=False),
    }
    return grids[found["grid"]]()(steps)


def requested(found):
    """(name, options of the solver, options of the sampler) of a run."""
    for pattern, ours, given in SOLVERS:
        if re.fullmatch(pattern, found["solver"]):
            name, solver = re.sub(pattern, ours, found["solver"]), dict(given)
            break
    else:
        raise AssertionError(f"no solver is known for {found['solver']}")
    flags = set(found["options"].split("_")) - {""}
    if "eps" in flags:
        solver["target"] = "noise"
    if "nolof" in flags:
        solver["lower_order_final"] = False
    for flag in flags:
        if re.fullmatch(r"r[\d.]+", flag):
            solver["r"] = float(flag[1:])
            flags = flags - {flag}
    unknown = flags - {"eps", "nolof", "nothr", "afs", "dz"}
    assert not unknown, f"options {unknown} are not known"
    threshold = name.startswith(THRESHOLDED) and not flags & {"eps", "nothr"}
    return (
        name,
        solver,
        dict(afs="afs" in flags, denoise_to_zero="dz" in flags, threshold=threshold),
    )


def replay_case(golden, case, wanted, denoise, latents):
    found = next(iter(wanted.values()))
    sigmas = levels(golden, found)
    name, options, extras = requested(found)
    solver = registry.entries("solvers", "SOLVERS")[name](**options)
    nfe = driver.evaluations(solver, sigmas, extras["afs"]) + extras["denoise_to_zero"]
    schedule = schedules.listed(sigmas)
    sampler = named.sampler(name, nfe, schedule=schedule, **extras, **options)
    calls = []

    def watched(x, sigma):
        with jax.disable_jit(False):
            calls.append(denoise(x, sigma))
        return calls[-1]

    with jax.disable_jit():  # loops run in Python then, so that calls can be counted
        golden.check(f"{case}/x0", named.generate(watched, sampler, latents), rtol=0, atol=1e-9)
    assert len(calls) == nfe, f"{case}: {len(calls)} calls made, {nfe} announced"
    if "nfe" in wanted:
        golden.check(f"{case}/nfe", nfe, rtol=0)
    if "traj" in wanted:
        golden.check(f"{case}/traj", trajectory(denoise, sampler, latents), rtol=0, atol=1e-9)
    if "coeffs" in wanted:
        check_coefficients(golden, f"{case}/coeffs", solver, sigmas)


def trajectory(denoise, sampler, latents):
    """All states of a sampler's run, the image of a last call included."""
    x, known, stepped = sampler.sigmas[0] * latents, None, denoise
    if sampler.options.threshold:
        stepped = guidance.thresholded(denoise)
    if sampler.options.afs:
        known = guidance.gaussian_guess(x, sampler.sigmas[0])
        known = guidance.dynamic_threshold(known) if sampler.options.threshold else known
    states = driver.sample(
        stepped, sampler.solver, x, sampler.sigmas, known=known, trace=True
    ).states
    if sampler.options.denoise_to_zero:
        states = jnp.concatenate([states, denoise(states[-1], sampler.sigmas[-1])[None]])
    return states


def check_coefficients(golden, key, solver, sigmas):
    """Weights of the latest slopes (N,4); the recorded code has none for its first step, which is Euler's."""
    weights = solver.table(sigmas).b
    weights = np.pad(weights, ((0, 0), (0, golden.arrays[key].shape[1] - weights.shape[1])))
    assert weights[0, 0] == sigmas[1] - sigmas[0] and not weights[0, 1:].any(), f"{key}: first step"
    weights[0] = 0
    np.testing.assert_allclose(weights, golden.arrays[key], rtol=1e-10, err_msg=key)
    golden.check(key, weights, rtol=1e-10)


def replay_dense(golden, denoise, latents):
    """A near-exact solution of the flow, by many of Heun's steps."""
    low, high = (float(golden.input(key)) for key in ("sigma_min", "sigma_max"))
    sigmas = schedules.polynomial(low, high, 7.0, zero=False)(DENSE - 1)
    heun = registry.entries("solvers", "SOLVERS")["heun"]()
    final = jax.jit(lambda x: driver.sample(denoise, heun, x, sigmas))(sigmas[0] * latents)
    golden.check("ode_dense/x0", final, rtol=0, atol=1e-9)
