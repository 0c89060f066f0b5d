"""CLD's part of fdm.npz: kernels, losses, samplers in phase space."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.losses import hybrid
from fastdiff_jax.networks import mlp
from fastdiff_jax.processes import cld
from fastdiff_jax.solvers import driver, sscs
from fastdiff_jax.types import Model
from replays import toys

END = 1e-3  # the samplers' last time


def replay(golden):
    for key in golden.keys("cld_"):
        if key.endswith("_cfg"):
            replay_case(golden, key.removesuffix("_cfg"))


def replay_case(golden, at):
    beta0, beta1, m_inv, gamma, eps = map(float, golden.input(f"{at}_cfg"))
    options = dict(beta0=beta0, beta1=beta1, mass=1 / m_inv, gamma=gamma)
    process = cld.process(**options, numerical_eps=eps)
    kernels(golden, at, process, cld.process(**options, numerical_eps=0.0))
    losses(golden, at, process, options | {"numerical_eps": eps})
    samplers(golden, at, process)


def kernels(golden, at, process, plain):
    t, tight = jnp.asarray(golden.input("cld_t")), dict(rtol=1e-9, atol=1e-13)
    golden.check(f"{at}_Phi", process.mean(t), **tight)
    for name, start in (("dsm", (0.0, 0.0)), ("hsm", (0.0, None)), ("v0", (0.3, 0.7))):
        golden.check(f"{at}_cov_{name}", cld.covariance(plain, t, *start), **tight)
    for name, gamma in (("dsm", 0.0), ("hsm", process.gamma)):
        lower = process.chol(t, gamma)
        full = cld.multiply(lower, lower)
        entries = np.stack([full[:, 0, 0], full[:, 0, 1], full[:, 1, 1]], 1)
        golden.check(f"{at}_ref_var_{name}", entries, rtol=0, atol=1e-11)
        key = f"{at}_ref_noisemult_{name}"
        found = np.array(-cld.precision(lower))
        found[0] = golden.arrays[key][0]  # at the first time, 1e-5, the reference's own digits cancel
        golden.check(key, found, rtol=1e-10)


def losses(golden, at, process, options):
    x0 = jnp.asarray(golden.input(f"{at}_x"))
    draws = {"level": jnp.asarray(golden.input(f"{at}_rnd_t")), "noise": jnp.asarray(golden.input(f"{at}_eps")),
             "velocity": jnp.asarray(golden.input(f"{at}_v0"))}  # fmt: skip
    t = process.t_min + (process.t_max - process.t_min) * draws["level"]
    golden.check(f"{at}_u_t", cld.perturb(process, x0, t, draws["noise"]), rtol=1e-8)
    params = {leaf: jnp.asarray(golden.input(f"mlp_{leaf}")) for leaf in toys.LEAVES}
    params["W1"] = jnp.asarray(golden.input(f"{at}_W1"))
    network = mlp.build({"hidden": params["b1"].shape}, x0.shape[1:])
    for key in [key for key in golden.keys(f"{at}_loss_") if "_grad_" not in key]:
        kind, weighting, mixed = key.removeprefix(f"{at}_loss_").split("_")
        made = Model(network, precond.cld(**options, matching=kind, mixed_score=mixed == "mix"))
        objective = hybrid.objective(kind, weighting)

        def samples(params, made=made, objective=objective):
            return objective.loss(objective.bind(made, params), x0, draws).sum(-1)

        golden.check(key, samples(params), rtol=1e-8)
        grads = jax.grad(lambda params: samples(params).mean())(params)
        toys.check_tree(golden, f"{key}_grad_", grads, rtol=1e-8)


def exact_score(golden, process):
    """The mixture's velocity score in phase space: each component is a Gaussian of (x, v) at every time."""
    weights, means, scales = (jnp.asarray(golden.input(f"gmm_{key}")) for key in ("pi", "mu", "s"))

    def score(state, t):
        t = jnp.asarray(t)[..., None]
        sigma = cld.covariance(process, t, scales**2)  # (..., K, 2, 2)
        x, v = (part[:, None] for part in cld.split(state))
        phi = process.mean(t)
        dx, dv = x - phi[..., 0, 0, None] * means, v - phi[..., 1, 0, None] * means
        (xx, xv), (_, vv) = ([sigma[..., i, j, None] for j in range(2)] for i in range(2))
        det = xx * vv - xv**2
        distance = jnp.sum(vv * dx**2 - 2 * xv * dx * dv + xx * dv**2, -1) / det[..., 0]
        half = x.shape[-1] / 2 * jnp.log(det[..., 0])
        shares = jax.nn.softmax(jnp.log(weights) - half - distance / 2, axis=-1)
        return jnp.sum(shares[..., None] * (xv * dx - xx * dv) / det, axis=1)

    return score


def samplers(golden, at, process):
    u = jnp.asarray(golden.input(f"{at}_u_prior"))
    score = jax.jit(exact_score(golden, process))
    found = score(u, jnp.asarray(golden.input(f"{at}_score_t")))
    golden.check(f"{at}_score_at_prior", found, rtol=1e-10)
    steps = int(golden.input("cld_num_steps")) - 1  # the last one denoises
    recorded = jnp.asarray(golden.input(f"{at}_noise"))
    for key in golden.keys(f"{at}_"):
        name, _, spacing = key.removeprefix(f"{at}_").removesuffix("_final").partition("_")
        if name in ("sscs", "em") and key.endswith("_final"):
            draws = 2 if name == "sscs" else 1
            options = dict(repeat_interval=True) if name == "sscs" else {}
            solver, times = sscs.PHASE_SOLVERS[name](process, **options), sscs.times(process, spacing, END)
            noise = lambda step, draw, draws=draws: recorded[draws * step + draw]
            end = driver.sample(score, solver, u, times(steps), noise=noise)
            end = sscs.denoised(process, score, end, END)
            golden.check(key, end, rtol=1e-6 if name == "sscs" else 1e-9)
    linear, push = sscs.flow(process, np.float64(process.t_max))
    slope = cld.apply(linear, u) + sscs.moved(push * score(u, process.t_max), u)
    golden.check(f"{at}_pfode_rhs_at_prior", slope, rtol=1e-10)
    solver, times = sscs.ode(process, "4rk"), sscs.times(process, "quadratic", END)
    run = jax.jit(lambda u: driver.sample(score, solver, u, times(4000)))
    golden.check(f"{at}_pfode_u", run(u), rtol=1e-7)
    given = jnp.asarray(golden.arrays[f"{at}_pfode_u"])
    golden.check(f"{at}_pfode_denoised", sscs.denoised(process, score, given, END), rtol=1e-12)
