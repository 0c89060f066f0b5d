"""SiD: both losses with their gradients, the raw formula with floor and NaN guard, whole iterations."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond, trees
from fastdiff_jax.losses import identity, levels, matching
from fastdiff_jax.methods import sid
from fastdiff_jax.networks import gmm
from fastdiff_jax.precond import denoiser
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.types import Model, Parts, expand
from replays import sid_family, toys


def replay(golden):
    cfg = {key.removeprefix("cfg_"): golden.input(key) for key in golden.keys("cfg_")}
    cfg = {key: float(value) for key, value in cfg.items() if value.ndim == 0}
    fake, generator = toys.parameters(golden, "fake_"), toys.parameters(golden, "gen_")
    mixture = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}
    teacher = {name: jnp.asarray(golden.input(key)) for name, key in mixture.items()}
    models = {
        "teacher": Model(gmm.build({}, teacher["means"].shape[1:]), precond.identity()),
        "generator": toys.model(generator, precond.edm(cfg["sigma_data"])),
        "fake": toys.model(fake, precond.edm(cfg["sigma_data"])),
    }
    objective = matching.edm(cfg["P_mean"], cfg["P_std"], cfg["sigma_data"])
    replay_fake_loss(golden, cfg, models, objective, fake, generator)
    replay_generator_loss(golden, cfg, models, fake, generator, teacher)
    replay_raw(golden, cfg)
    for rounds in (1, 2):  # the recorded run took two rounds a batch, which must not matter
        replay_training(golden, cfg, models, objective, fake, generator, teacher, rounds)
    replay_closed_form(golden)
    sid_family.replay(golden, cfg, models, fake, generator, teacher)


def array(golden, key):
    return jnp.asarray(golden.input(key))


def generated(cfg, model, params, latents):
    return denoiser(model, params)(cfg["sigma_init"] * latents, cfg["sigma_init"])


def replay_fake_loss(golden, cfg, models, objective, fake, generator):
    draws, seen = {"level": array(golden, "fs_rnd_normal"), "noise": array(golden, "fs_eps_n")}, {}
    images = generated(cfg, models["generator"], generator, array(golden, "fs_eps_z"))
    golden.check("fs_images", images)

    def elements(params):
        def watched(x, sigma):
            seen["sigma"] = sigma
            return denoiser(models["fake"], params)(x, sigma)

        return objective.loss(watched, images, draws, guard=True)

    golden.check("fs_loss_elem", elements(fake))
    golden.check("fs_sigma", seen["sigma"])
    total, grads = jax.value_and_grad(lambda p: cfg["ls"] * elements(p).sum() / len(images))(fake)
    golden.check("fs_loss", total)
    toys.check_tree(golden, "fs_grad_", grads)


def replay_generator_loss(golden, cfg, models, fake, generator, teacher):
    latents, noise = array(golden, "g_eps_z"), array(golden, "g_eps_n")
    sigma = levels.karras(cfg["tmax"]).sigma(array(golden, "g_rnd_t"))
    golden.check("g_sigma", sigma)

    def parts(images):
        x_t = images + expand(sigma, images) * noise
        real, critic = (
            denoiser(models[n], p)(x_t, sigma) for n, p in (("teacher", teacher), ("fake", fake))
        )
        return x_t, real, critic

    images = generated(cfg, models["generator"], generator, latents)
    x_t, real, critic = parts(images)
    recorded = dict(
        images=images,
        x_t=x_t,
        y_real=real,
        y_fake=critic,
        weight=identity.inverse_weight(images, real),
    )
    for key, value in recorded.items():
        golden.check(f"g_{key}", value)
    for key in golden.keys("g_loss_elem_a"):
        tag = key.rpartition("_")[2]
        alpha = int(tag[1:]) / 100

        def loss(images, alpha=alpha):
            _, real, critic = parts(images)
            return cfg["lsg"] * identity.elements(images, real, critic, alpha).sum() / len(images)

        golden.check(key, identity.elements(images, real, critic, alpha))
        total, grads = jax.value_and_grad(loss)(images)
        golden.check(f"g_loss_{tag}", total)
        golden.check(f"g_grad_images_{tag}", grads)
        grads = jax.grad(
            lambda p, loss=loss: loss(generated(cfg, models["generator"], p, latents))
        )(generator)
        toys.check_tree(golden, f"g_grad_{tag}_", grads)


def replay_raw(golden, cfg):
    x, alpha = array(golden, "raw_y"), float(golden.input("raw_alpha"))
    real, critic = array(golden, "raw_y_real"), array(golden, "raw_y_fake")
    golden.check("raw_loss_elem", identity.elements(x, real, critic, alpha))
    real, critic = array(golden, "rawnan_y_real"), array(golden, "rawnan_y_fake")

    def loss(x):
        return cfg["lsg"] * identity.elements(x, real, critic, alpha).sum() / len(x)

    total, grads = jax.value_and_grad(loss)(x)
    golden.check("rawnan_loss", total)
    assert np.isfinite(grads).all(), "the NaN guard must keep NaN out of the gradient too"


def replay_training(golden, cfg, models, objective, fake, generator, teacher, rounds):
    batch = golden.arrays["tr_eps_z_fake"].shape[1]

    def adam(rate, beta1):
        request = dict(
            name="adam", learning_rate=rate, b1=beta1, b2=cfg["beta2"], eps=cfg["adam_eps"]
        )
        return optimizers.build(request, batch, 0.0)

    tx = {
        "fake": adam(cfg["lr_fake"], cfg["beta1_fake"]),
        "generator": adam(cfg["lr_gen"], cfg["beta1_gen"]),
    }
    settings = dict(
        alpha=float(golden.input("tr_alpha")), sigma_init=cfg["sigma_init"],
        levels={"name": "karras", "t_max": cfg["tmax"]},
        fake_scale=cfg["ls"], generator_scale=cfg["lsg"], ema_half_life=cfg["ema_halflife_nimg"],
        ema_ramp=cfg["ema_rampup_ratio"], start_images=cfg["nimg0"], accumulation=rounds,
    )  # fmt: skip
    method = sid.build(settings, Parts(models, tx, (len(fake["W1"]),), objective=objective))
    state = sid.State(
        jnp.zeros((), jnp.int32), generator, trees.copy(generator), tx["generator"].init(generator),
        fake, tx["fake"].init(fake),
    )  # fmt: skip
    names = {"latents": "eps_z", "level": "rnd", "noise": "eps_n"}
    recorded = {
        "fake": {"latents": "tr_eps_z_fake", "level": "tr_rnd_normal", "noise": "tr_eps_n_fake"},
        "generator": {"latents": "tr_eps_z_gen", "level": "tr_rnd_t", "noise": "tr_eps_n_gen"},
    }
    draws = {
        role: {name: array(golden, keys[name]) for name in names} for role, keys in recorded.items()
    }
    update, log = jax.jit(method.update, static_argnums=4), []
    for step in range(len(draws["fake"]["latents"])):
        now = {
            role: {name: v[step] for name, v in d.items()} | {"dropout": jax.random.key(0)}
            for role, d in draws.items()
        }
        now["fake"] = [now["fake"]]
        state, metrics = update(state, {"teacher": teacher}, {}, now, None)
        log.append(metrics)
        if step == 0:
            toys.check_tree(golden, "tr1_fake_", state.fake)
            toys.check_tree(golden, "tr1_gen_", state.generator)
    for key, name in (
        ("tr_fake_loss", "loss_fake"),
        ("tr_gen_loss", "loss_generator"),
        ("tr_ema_beta", "ema_beta"),
    ):
        golden.check(key, np.array([metrics[name] for metrics in log]))
    toys.check_tree(golden, "tr_fake_", state.fake)
    toys.check_tree(golden, "tr_gen_", state.generator)
    toys.check_tree(golden, "tr_ema_", state.ema)


def replay_closed_form(golden):
    """One-dimensional Gaussians: the expected loss by quadrature over z and n, its gradients by autodiff.

    Rows: m, s^2, a, b, nu, v, sigma, alpha, E[L], dE/da, dE/db of G(z) = a z + b, with unit
    weight, which is identity.elements times its own divisor.
    """
    table = golden.arrays["gs_table"]
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    z, n = (v.ravel() for v in np.meshgrid(nodes, nodes))
    mass = np.outer(weights, weights).ravel() / weights.sum() ** 2

    def gaussian(mean, variance):
        return lambda x, sigma: mean + variance / (variance + sigma**2) * (x - mean)

    def expected(a, b, m, s2, nu, v, sigma, alpha):
        x = (a * z + b)[:, None]
        x_t = x + sigma * n[:, None]
        real, critic = gaussian(m, s2)(x_t, sigma), gaussian(nu, v)(x_t, sigma)
        unit = identity.elements(x, real, critic, alpha) * identity.inverse_weight(x, real)[:, None]
        return mass @ unit[:, 0]

    rows = []
    for m, s2, a, b, nu, v, sigma, alpha in table[:, :8]:
        value, grads = jax.value_and_grad(expected, (0, 1))(a, b, m, s2, nu, v, sigma, alpha)
        rows.append([m, s2, a, b, nu, v, sigma, alpha, value, *grads])
    golden.check("gs_table", np.array(rows))
