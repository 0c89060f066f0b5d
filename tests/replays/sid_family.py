"""DMD2, Diff-Instruct and SiDA: losses and gradients of both networks, out of whole updates of the method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax.losses import identity, levels, matching
from fastdiff_jax.methods import dmd
from fastdiff_jax.precond import denoiser
from fastdiff_jax.types import Parts, expand
from replays import toys

# The weight of the discriminator's loss in SiDA, halved for its two parts, and the bound of the logits.
LSD, CLIP, FLOOR = 1.0, 10.0, 1e-5
TAP = "hidden1"  # of the toy network


def replay(golden, cfg, models, fake, generator, teacher):
    known = dict(golden=golden, cfg=cfg, models=models, fake=fake, generator=generator, teacher=teacher)
    if golden.keys("dm_"):
        replay_dmd2(**known)
    if golden.keys("di_"):
        replay_diff_instruct(**known)
    if golden.keys("sida_"):
        replay_sida(**known)


def array(golden, key):
    return jnp.asarray(golden.input(key))


def stepped(settings, draws, batch, models, objective, fake, generator, teacher):
    """Metrics and gradients of one iteration, whose optimizers add the gradients to the weights."""
    tx = optax.stateless(lambda updates, params: updates)
    parts = Parts(models, {"generator": tx, "fake": tx}, (len(fake["W1"]),), objective=objective)
    method = dmd.build(settings, parts)
    empty = optax.EmptyState()
    before = dmd.State(jnp.zeros((), jnp.int32), generator, generator, empty, {"score": fake}, empty)
    turn = dmd.Turn(True, "adversarial" in settings)
    draws = {role: given | {"dropout": jax.random.key(0)} for role, given in draws.items()}
    after, metrics = method.update(before, {"teacher": teacher}, batch, draws, turn)
    moved = jax.tree.map(jnp.subtract, after, before._replace(ema=after.ema))
    return metrics, moved.generator, moved.critic["score"]


def replay_dmd2(golden, cfg, models, fake, generator, teacher):
    objective = matching.edm_grid(cfg["sigma_data"])
    latents, index = array(golden, "dm_eps_z"), array(golden, "dm_index")
    noise = array(golden, "dm_eps_n")
    law = levels.karras_grid()
    golden.check("dm_sigma", law.sigma(index))
    draws = {
        "generator": dict(latents=latents, level=index, noise=noise),
        "fake": dict(
            latents=latents, level=array(golden, "dm_fake_index"), noise=array(golden, "dm_fake_eps_n")
        ),
    }
    settings = dict(sigma_init=cfg["sigma_init"])
    metrics, of_generator, of_fake = stepped(
        settings, draws, {}, models, objective, fake, generator, teacher
    )
    golden.check("dm_loss", metrics["loss_generator"])
    toys.check_tree(golden, "dm_grad_", of_generator)
    golden.check("dm_fake_loss", metrics["loss_fake"])
    toys.check_tree(golden, "dm_fake_grad_", of_fake)

    x = denoiser(models["generator"], generator)(cfg["sigma_init"] * latents, cfg["sigma_init"])
    sigma = law.sigma(index)
    x_t = x + expand(sigma, x) * noise
    real, critic = (denoiser(models[n], p)(x_t, sigma) for n, p in (("teacher", teacher), ("fake", fake)))
    loss = lambda x: identity.squared(x, identity.direction(x, real, critic)).mean()
    golden.check("dm_grad_images", jax.grad(loss)(x))


def replay_diff_instruct(golden, cfg, models, fake, generator, teacher):
    objective = matching.edm(cfg["P_mean"], cfg["P_std"], cfg["sigma_data"])
    one = dict(
        latents=array(golden, "di_eps_z"), level=array(golden, "di_rnd_normal"), noise=array(golden, "di_eps_n")
    )
    settings = dict(
        weighted=False, form="product", reduction="sum", ratio=1, sigma_init=cfg["sigma_init"],
        levels=dict(name="lognormal", mean=cfg["P_mean"], std=cfg["P_std"]),
    )  # fmt: skip
    metrics, of_generator, _ = stepped(
        settings, {"generator": one, "fake": one}, {}, models, objective, fake, generator, teacher
    )
    golden.check("di_loss", metrics["loss_generator"])
    toys.check_tree(golden, "di_grad_", of_generator)


def replay_sida(golden, cfg, models, fake, generator, teacher):
    objective = matching.edm(cfg["P_mean"], cfg["P_std"], cfg["sigma_data"])
    latents = array(golden, "sida_eps_z")
    draws = {
        "generator": dict(
            latents=latents, level=array(golden, "sida_rnd_t"), noise=array(golden, "sida_eps_n")
        ),
        "fake": dict(
            latents=latents, level=array(golden, "sida_d_rnd_normal"), noise=array(golden, "sida_d_eps_n")
        ),
    }
    settings = dict(
        loss="sid", alpha=float(golden.input("sida_alpha")), floor=FLOOR, reduction="sum",
        sigma_init=cfg["sigma_init"], levels=dict(name="karras", t_max=cfg["tmax"]), ratio=1,
        fake_scale=cfg["ls"], generator_scale=cfg["lsg"],
        adversarial=dict(
            tap=TAP, levels=None, weighting="score", clip=CLIP, share=0.5, discriminator_weight=LSD / 2,
            generator_weight=float(golden.input("sida_lsg_gan")),
        ),
    )  # fmt: skip
    batch = {"image": array(golden, "sida_real")}
    # Generator first: the recorded losses are all at the initial weights.
    metrics, of_generator, of_fake = stepped(
        settings, draws, batch, models, objective, fake, generator, teacher
    )
    for key, name in (
        ("loss_sid", "generator"),
        ("loss_gan", "adversarial"),
        ("d_loss_fake_score", "fake"),
        ("d_loss_disc", "discriminator"),
    ):
        golden.check(f"sida_{key}", metrics[f"loss_{name}"])
    toys.check_tree(golden, "sida_grad_", of_generator)
    toys.check_tree(golden, "sida_d_grad_", of_fake)
    assert np.isfinite(float(metrics["gap"]))
