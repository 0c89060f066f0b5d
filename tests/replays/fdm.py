"""FDM and CLD: kernels, c_in, losses with gradients, samplers; the momentum oscillator behind both."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.losses import matching
from fastdiff_jax.networks import gmm
from fastdiff_jax.processes import fdm, oscillator, standard
from fastdiff_jax.solvers import named, schedules
from fastdiff_jax.types import Model, expand
from replays import fdm_cld, toys

VARIANTS = ("vp", "ve", "edm")
GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}
WARMUP = 200  # calls, of the recorded losses
CHURN = dict(s_churn=10.0, s_min=0.05, s_max=50.0, s_noise=1.003)
SCALED_STEPS = 24
TOL = dict(rtol=1e-10)


def replay(golden):
    kernels(golden)
    vp_times(golden)
    oscillators(golden)
    denoisers(golden)
    losses(golden)
    caps(golden)
    samplers(golden)
    scaled(golden)
    exact_flow(golden)
    fdm_cld.replay(golden)


def settings(golden):
    """The recorded FDM settings of the sections that have them."""
    return {name: float(golden.input(f"fdm_{name}")) for name in ("multiplier", "beta_d", "beta_min")}


def kernels(golden):
    tau, multipliers = jnp.asarray(golden.input("kern_tau")), golden.input("kern_mults")
    golden.check("kern_B", fdm.clock(tau), **TOL)
    for name in VARIANTS:
        rows = [fdm.PROCESSES[name](float(m)) for m in multipliers]
        first = rows[0]
        sigma = first.sigma(tau)
        ends = first.sigma(jnp.array([first.t_min, first.t_max]))
        golden.check(f"kern_{name}_sigma", sigma, **TOL)
        golden.check(f"kern_{name}_sigma_range", ends, **TOL)
        for which in ("mean", "std"):
            of_tau, of_sigma = [], []
            for process in rows:
                curve = process.scale if which == "mean" else lambda t, p=process: p.scale(t) * p.sigma(t)
                of_tau.append(curve)
                of_sigma.append(lambda s, p=process, curve=curve: curve(p.inverse(s)))
            golden.check(f"kern_{name}_{which}", np.stack([curve(tau) for curve in of_tau]), **TOL)
            for key, curves, at in (("dtau", of_tau, tau), ("dsigma", of_sigma, sigma)):
                slopes = np.stack([jax.vmap(jax.grad(curve))(at) for curve in curves])
                golden.check(f"kern_{name}_d{which}_{key}", slopes, **TOL)


def vp_times(golden):
    t, process = jnp.asarray(golden.input("vp_t")), standard.vp()
    golden.check("vp_sigma", process.sigma(t))
    golden.check("vp_dsigma_dt", jax.vmap(jax.grad(process.sigma))(t))
    sigma = process.sigma(t)
    golden.check("vp_sigma_inv", process.inverse(sigma))
    golden.check("vp_base_cin", precond.vp().coefficients(sigma).inp)
    golden.check("vp_fdm_cin", preconditioner(golden, "fdm_vp").coefficients(sigma).inp)


def oscillators(golden):
    times = jnp.asarray(golden.input("osc_B"))
    found = []
    for zeta in golden.input("osc_zeta"):
        for omega in golden.input("osc_omega"):
            b, arguments = omega * times, (float(omega), float(zeta))
            phi, spread = (f(b, *arguments) for f in (oscillator.transition, oscillator.covariance))
            rows = (phi[:, 0, 0], phi[:, 1, 0], spread[:, 0, 0], spread[:, 0, 1], spread[:, 1, 1])
            found.append(np.stack(rows, 1))
    expected = golden.arrays["osc_moments"]
    golden.check("osc_moments", np.reshape(found, expected.shape), rtol=0, atol=1e-11)
    count = len(golden.arrays["hb_x"]) - 1
    gamma, means = oscillator.heavy_ball(float(golden.input("hb_eta")), count)
    golden.check("hb_gamma", gamma, rtol=1e-12)
    golden.check("hb_x", means, rtol=1e-12)


def preconditioner(golden, name):
    """The preconditioner of vp, ve, edm, or of one with FDM: fdm_vp, ..."""
    base = name.removeprefix("fdm_")
    made = precond.PRECONDS[base]()
    if base == name:
        return made
    return precond.with_input_scale(made, fdm.PROCESSES[base](**settings(golden)))


def model(golden, name):
    """(model, parameters) of the recorded toy network; the VP ones have their own u."""
    params = {leaf: jnp.asarray(golden.input(f"mlp_{leaf}")) for leaf in toys.LEAVES}
    if name.endswith("vp"):
        params["u"] = jnp.asarray(golden.input("mlp_u_vp"))
    return toys.model(params, preconditioner(golden, name)), params


def denoisers(golden):
    sigma = jnp.asarray(golden.input("prec_sigma"))
    y, noise = (jnp.asarray(golden.input(f"prec_{key}")) for key in ("y", "noise"))
    x = y + sigma[:, None] * noise
    for key in golden.keys("prec_"):
        if key.endswith("_D"):
            name = key.removeprefix("prec_").removesuffix("_D")
            made, params = model(golden, name)
            c = made.precond.coefficients(sigma)
            golden.check(f"prec_{name}_net_in", expand(c.inp, x) * x, **TOL)
            golden.check(f"prec_{name}_cnoise", c.noise, **TOL)
            golden.check(key, precond.denoiser(made, params)(x, sigma), **TOL)


def losses(golden):
    for key in golden.keys("loss_"):
        if key.endswith("_rnd"):
            replay_losses(golden, key.removeprefix("loss_").removesuffix("_rnd"))


def replay_losses(golden, name):
    made, params = model(golden, name)
    y, noise, level = (jnp.asarray(golden.input(f"loss_{name}_{key}")) for key in ("y", "noise", "rnd"))
    draws, at = {"noise": noise, "level": level}, f"loss_{name}_"
    cases = [key.removeprefix(at).removesuffix("_elem") for key in golden.keys(at) if key.endswith("_elem")]
    for case in cases:
        step = None if case == "nowarm" else int(case.removeprefix("warm"))
        warmup = 0 if step is None else WARMUP
        objective = matching.OBJECTIVES[name.removeprefix("fdm_")](warmup=warmup)

        def elements(params, objective=objective, step=step):
            return objective.loss(precond.denoiser(made, params), y, draws, step=step)

        total, grads = jax.value_and_grad(lambda params: elements(params).sum() / len(y))(params)
        golden.check(f"{at}{case}_elem", elements(params), **TOL)
        golden.check(f"{at}{case}_value", total, **TOL)
        golden.check(f"{at}{case}_cap", matching.weight_cap(step or 0, warmup), **TOL)
        toys.check_tree(golden, f"{at}{case}_grad_", grads, **TOL)


def caps(golden):
    for i, warmup in enumerate(golden.input("cap_warmup_ite")):
        key, warmup = f"cap_seq_{i}", int(warmup)
        recorded = golden.arrays[key]
        made = np.array(matching.weight_cap(np.arange(len(recorded)), warmup))
        # The reference multiplies up to the cap, so rounding decides whether call W is the last one clamped.
        assert made[warmup] == np.inf and (np.isinf(recorded[warmup]) or abs(recorded[warmup] - 500) < 1e-8)
        made[warmup] = recorded[warmup]
        golden.check(key, made, **TOL)


def mixture(golden):
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    network = gmm.build({"modes": len(params["weights"])}, params["means"].shape[1:], 0)
    return Model(network, precond.identity()), params


def samplers(golden):
    latents = jnp.asarray(golden.input("samp_latents"))
    steps, budgets = int(golden.input("samp_num_steps")), golden.input("dpm_num_steps")
    for key in golden.keys():
        kind, _, rest = key.partition("_")
        if kind not in ("heun", "churn", "dpm") or not key.endswith("_final"):
            continue
        case, noise = rest.removesuffix("_final"), None
        if kind == "dpm":
            case, index, end = case.rsplit("_", 2)
        name = case.removeprefix("mlp_")
        made, params = mixture(golden) if name == "gmm" else model(golden, name)
        if kind == "dpm":
            # The recorded runs go from 80 to 0.002 whatever the model's range.
            span, final = schedules.logsnr(0.002, 80.0, zero=False), end == "den"
            nfe = int(budgets[int(index)])
            sampler = named.sampler("dpmpp_3s", nfe, schedule=span, denoise_to_zero=final)
        else:
            schedule = schedules.clipped({"name": "polynomial"}, made.precond)
            common = dict(schedule=schedule, precond=made.precond)
            options = CHURN if kind == "churn" else {}
            sampler = named.sampler("heun_churn" if options else "heun", 2 * steps - 1, **common, **options)
        if kind == "churn":
            recorded = jnp.asarray(golden.input("samp_churn_noise"))
            noise = lambda step, draw, recorded=recorded: recorded[step]
        replay_run(golden, key.removesuffix("_final"), precond.denoiser(made, params), sampler, latents, noise)


def replay_run(golden, key, denoise, sampler, latents, noise):
    """Where a run ends and, if they are recorded, its network calls."""
    denoise, calls = jax.jit(denoise), []

    def watched(x, sigma):
        with jax.disable_jit(False):
            calls.append((x, sigma, denoise(x, sigma)))
        return calls[-1][-1]

    with jax.disable_jit():  # loops run in Python then, so every call is seen with its values
        final = named.generate(watched, sampler, latents, noise=noise)
    golden.check(f"{key}_final", final, **TOL)
    if golden.keys(f"{key}_call_"):
        for name, values in zip(("x", "sigma", "D"), zip(*calls, strict=True), strict=True):
            golden.check(f"{key}_call_{name}", np.stack(values), **TOL)


def scaled(golden):
    """The general sampler, in the scaled coordinates of FDM or none."""
    made, params = mixture(golden)
    denoise, latents = precond.denoiser(made, params), jnp.asarray(golden.input("samp_latents"))
    for key in golden.keys("scaled_"):
        _, solver, scale, _ = key.split("_")
        options = {} if scale == "none" else dict(scaling="fdm", multiplier=float(scale.removeprefix("m")))
        nfe = SCALED_STEPS if solver == "euler" else 2 * SCALED_STEPS - 1
        schedule = schedules.polynomial(0.002, 80.0)
        sampler = named.sampler("generalised", nfe, schedule=schedule, solver=solver, **options)
        golden.check(key, named.generate(denoise, sampler, latents), **TOL)


def exact_flow(golden):
    """The end of the probability flow, by 4000 steps of order four."""
    made, params = mixture(golden)
    denoise, latents = precond.denoiser(made, params), jnp.asarray(golden.input("samp_latents"))
    fine = schedules.polynomial(0.002, 80.0, zero=False)
    sampler = named.sampler("rhork_4rk", 16000, schedule=fine)
    found = jax.jit(lambda z: named.generate(denoise, sampler, z))(latents)
    golden.check("pfode_gmm_x_at_sigma_min", found, rtol=1e-7)
