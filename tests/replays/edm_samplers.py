"""EDM's samplers, its own and the ablations' generalised one: every network call, and where a run ends."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.networks import gmm
from fastdiff_jax.solvers import generalised, named, schedules
from fastdiff_jax.types import Model

CHURN = ("S_churn", "S_min", "S_max", "S_noise")
GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}


def replay(golden):
    latents = golden.input("latents")
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    network = gmm.build({"modes": len(params["weights"])}, latents.shape[1:], 0)
    denoise = jax.jit(precond.denoiser(Model(network, precond.identity()), params))
    for key in golden.keys():
        case, _, last = key.partition("/")
        if last == "cfg":
            made = edm if case.startswith("edm_") else ablation
            replay_case(golden, case, denoise, jnp.asarray(latents), made)


def trained(case):
    """The preconditioner whose range and rounding a case has; files say it by the case's name only."""
    if case.startswith(("edm_iddpm", "abl_iddpm_heun")):
        return precond.iddpm()
    if case.startswith("edm_clamped"):
        return precond.identity()._replace(sigma_min=0.02, sigma_max=100.0)
    return precond.identity()


def edm(config, model, churn, stochastic):
    """The named sampler of EDM's own settings."""
    nfe = 2 * config.pop("num_steps") - 1
    # The recorded sampler cuts what it is asked for to the model's range; ours refuses it.
    schedule = schedules.clipped({"name": "polynomial", "zero": True, **config}, model)
    common = dict(schedule=schedule, precond=model)
    if stochastic:
        return named.sampler("heun_churn", nfe, **common, **churn)
    return named.sampler("heun", nfe, repeats=True, **common)


def ablation(config, model, churn, stochastic):
    """The named sampler of the ablations' settings."""
    steps, solver = config.pop("num_steps"), config.pop("solver", "heun")
    low, high = ends(config, model)
    eps_s = config.pop("epsilon_s", 1e-3)
    discrete = {"M": "train_steps", "C_1": "c1", "C_2": "c2"}
    discrete = {ours: config.pop(theirs) for theirs, ours in discrete.items() if theirs in config}
    rho = config.pop("rho", 7.0)
    schedule = {
        "vp": lambda: schedules.time(low, high, eps_s=eps_s),
        "ve": lambda: schedules.logsnr(low, high),
        "iddpm": lambda: generalised.iddpm_levels(low, high, **discrete),
        "edm": lambda: schedules.polynomial(low, high, rho),
    }[config.pop("discretization", "edm")]()
    options = dict(
        solver=solver,
        time=config.pop("schedule", "linear"),
        scaling=config.pop("scaling", "none"),
        alpha=config.pop("alpha", 1.0),
        eps_s=eps_s,
        sigma_min=low,
        sigma_max=high,
    )
    assert not config, f"settings that are not replayed: {config}"
    nfe = 2 * steps - 1 if solver == "heun" else steps
    return named.sampler(
        "generalised", nfe, schedule=schedule, precond=model, **options, **churn
    )


def ends(config, model):
    """The range of a discretization, its default or as asked, cut to the model's."""
    usual = {
        "vp": lambda: generalised.vp_levels(eps_s=config.get("epsilon_s", 1e-3))(2)[:2][::-1],
        "ve": lambda: (0.02, 100.0),
        "iddpm": lambda: (0.002, 81.0),
        "edm": lambda: (0.002, 80.0),
    }[config.get("discretization", "edm")]()
    low, high = (
        default if asked is None else asked
        for default, asked in zip(
            usual, (config.pop(end, None) for end in ("sigma_min", "sigma_max")), strict=True
        )
    )
    return max(float(low), model.sigma_min), min(float(high), model.sigma_max)


def replay_case(golden, case, denoise, latents, made):
    config = golden.config(f"{case}/cfg")
    churn = {name.lower(): config.pop(name) for name in CHURN if name in config}
    stochastic = bool(golden.keys(f"{case}/noise"))
    assert stochastic or not churn.get("s_churn"), f"{case}: churn without recorded noise"
    sampler = made(config, trained(case), churn, stochastic)
    noise, calls = None, []
    if stochastic:
        recorded = jnp.asarray(golden.input(f"{case}/noise"))

        def noise(step, draw):
            assert draw == 0, "one draw a step"
            return recorded[step]

    def watched(x, sigma):
        with jax.disable_jit(False):
            calls.append((x, sigma, denoise(x, sigma)))
        return calls[-1][-1]

    final = jax.jit(lambda z: named.generate(denoise, sampler, z, noise=noise))(latents)
    golden.check(f"{case}/x_final", final)
    with jax.disable_jit():  # loops run in Python then, so every call is seen with its values
        named.generate(watched, sampler, latents, noise=noise)
    for key, values in zip(("net_x", "net_sigma", "net_D"), zip(*calls, strict=True), strict=True):
        golden.check(f"{case}/{key}", np.stack(values))
