"""ParaDiGMS: every pass of the recorded runs, in the coordinates of the discrete VP process."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.networks import gmm
from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers import driver, multistep, picard, stochastic
from fastdiff_jax.types import Model

GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}
INFINITE = 1e9  # how the file writes an infinite error
CLAMPED = 1e-20  # DDPM's least variance


def replay(golden):
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    network = gmm.build({"modes": len(params["weights"])}, params["means"].shape[1:], 0)
    denoise = precond.denoiser(Model(network, precond.identity()), params)
    ends = (float(golden.input(key)) for key in ("para_beta0", "para_beta1"))
    abar = discrete.alphas_cumprod("scaled_linear", discrete.STEPS, *ends)
    count = int(golden.input("para_steps"))
    labels = discrete.labels("trailing", count)
    golden.check("para_timesteps", labels)
    following = labels - discrete.STEPS // count
    # The DPM solver's labels are those of its own list, and all but DDPM and DDIM's step end at abar_0.
    to_one = np.where(following < 0, 1.0, abar[following])
    to_first = np.where(following < 0, abar[0], abar[following])
    listed = abar[np.append(labels[1:], 0)]
    ddpm = np.maximum(posterior(abar[labels], to_one), CLAMPED)
    noise = jnp.asarray(golden.input("para_noise"))
    runs = {
        "ddim": (multistep.euler(), to_one, posterior(abar[labels], to_first), denoise),
        "ddpm": (stochastic.ddpm(), to_one, ddpm, denoise),
        "dpm": (
            multistep.dpmpp(2, lower_order_final=False),
            listed,
            np.where(following < 0, 0.0, posterior(abar[labels], to_first)),
            lambda x, sigma: jnp.clip(denoise(x, sigma), -1, 1),
        ),
    }
    for name, (solver, reached, variance, predictor) in runs.items():
        golden.check(f"para_{name}_var", variance)
        levels = np.append(abar[labels], reached[-1])
        if name != "dpm":
            solver = strided(solver, levels, reached)
        replay_runs(golden, name, solver, levels, variance, predictor, noise)


def posterior(abar, reached):
    """(N,) variances of the reverse steps from `abar` to `reached`."""
    return (1 - reached) / (1 - abar) * (1 - abar / reached)


def strided(solver, levels, reached):
    """A one-step solver whose steps end at `reached` (N,), whatever level (N+1,) the next one takes that for.

    diffusers' stride is M // N, which misses the next label where N does not divide M. In coordinates x the
    misread state is the right one times the ratio of both scales.
    """

    def table(sigmas):
        ends = np.sqrt(1 / reached - 1)
        rows = [solver.table(np.array(pair)) for pair in zip(sigmas[:-1], ends)]
        ratio = np.sqrt(reached / levels[1:])
        return jax.tree.map(lambda *v: (np.concatenate(v).T * ratio).T, *rows)

    return solver._replace(table=table)


def replay_runs(golden, name, solver, abar, variance, denoise, noise):
    sigmas, scale = discrete.sigmas(abar), np.sqrt(abar)
    x = jnp.asarray(golden.input("para_xT")) / scale[0]
    drawn = {"noise": lambda step, draw: noise[step]} if name == "ddpm" else {}
    sequential = jax.jit(partial(driver.run, denoise, trace=True, **drawn))
    states = sequential(x, driver.prepare(solver, sigmas, x.dtype)).states
    golden.check(f"para_{name}_seq", scale[:, None, None] * states)
    run = jax.jit(partial(picard.run, denoise, trace=True, **drawn))
    window = int(golden.input("para_window"))
    for key in golden.keys(f"para_{name}_tol"):
        if not re.fullmatch(r"para_\w+_tol\d+", key):
            continue
        settings = dict(window=window, tolerance=float(golden.input(key)), scale=scale)
        settings |= dict(variance=variance, restart=name == "dpm")
        found = run(x, picard.prepare(solver, sigmas, x.dtype, **settings))
        check_run(golden, key, found, window, np.append(variance[1:], 0.0))


def check_run(golden, key, run, window, variance):
    passes = int(run.passes)
    golden.check(f"{key}_counts", np.array([passes, run.evaluations]))
    golden.check(f"{key}_ranges", run.trace.ranges[:passes])
    golden.check(f"{key}_buffers", run.trace.buffers[: passes + 1])
    if golden.keys(f"{key}_errors"):
        errors = np.asarray(run.trace.errors[:passes])
        errors = np.where(np.isinf(errors), INFINITE, errors)
        missing = window - errors.shape[1]  # of a window longer than the run
        errors = np.pad(errors, ((0, 0), (0, missing), (0, 0)), constant_values=picard.OUTSIDE)
        golden.check(f"{key}_errors", errors)
        # Over variances near zero they are huge, and hide the others: their roots times the deviations are not.
        expected, special = golden.arrays[f"{key}_errors"], (INFINITE, picard.OUTSIDE)
        spots = run.trace.ranges[:passes, :1] + np.arange(window)
        deviations = np.sqrt(np.append(variance, np.zeros(window))[spots])[..., None]
        ordinary = ~np.isin(expected, special)
        np.testing.assert_array_equal(errors[~ordinary], expected[~ordinary])
        errors, expected = (np.where(ordinary, values, 0.0) for values in (errors, expected))
        changes, recorded = deviations * np.sqrt(errors), deviations * np.sqrt(expected)
        np.testing.assert_allclose(changes, recorded, rtol=1e-7, atol=1e-12, err_msg=key)
