"""Stable Diffusion 3's variant: levels of a shifted flow, losses of velocities, and its sampler."""

import jax
import jax.numpy as jnp

from fastdiff_jax import guidance
from fastdiff_jax.losses import adversarial, distances, flow, identity
from fastdiff_jax.processes import flow as levels
from fastdiff_jax.solvers import driver
from fastdiff_jax.solvers import flow as solvers
from replays import flash_toy
from replays.flash_losses import drawn
from replays.flash_toy import array, check_tree


def replay(golden):
    if not golden.keys("sd3_"):
        return
    toy, shift, steps = flash_toy.toy(golden), *replay_levels(golden)
    replay_losses(golden, toy, shift, steps)
    for key in golden.keys("sd3_sample_"):
        sigmas = levels.sigmas(int(key.rpartition("_")[2]), shift, steps)
        noise = array(golden, "sample_noise")
        bound, x = velocity(toy, toy.student, toy.y), array(golden, "sample_init")
        draw = lambda step, draw, noise=noise: noise[step]
        golden.check(key, driver.sample(bound, solvers.jump(), x, sigmas, noise=draw))


def replay_levels(golden):
    """Shift and number of levels, of which the second trained one tells the shift."""
    recorded = golden.arrays["sd3_train_sigmas"]
    steps, second = len(recorded), recorded[1]
    even = 1 - 1 / steps
    shift = float(second * (1 - even) / (even * (1 - second)))
    trained = levels.trained(shift, steps)
    golden.check("sd3_train_sigmas", trained)
    golden.check("sd3_train_timesteps", levels.labels(trained, steps))
    for prefix in ("sd3_", "sd3_flash_"):
        for key in golden.keys(f"{prefix}sigmas_"):
            count = key.rpartition("_")[2]
            found = levels.sigmas(int(count), shift, steps)
            golden.check(key, found)
            golden.check(f"{prefix}timesteps_{count}", levels.labels(found[:-1], steps))
    back = golden.input("gan_timesteps")
    golden.check("sd3_gan_timesteps", levels.labels(trained[-back], steps))
    return shift, steps


def velocity(toy, params, y=None):
    """The toy network in place of a velocity, told a thousandth of steps sigma."""
    cond = {} if y is None else {"label": y}

    def bound(x, sigma):
        return toy.model.network.apply(params, x, jnp.broadcast_to(jnp.asarray(sigma), x.shape[:1]), cond)

    return bound


def replay_losses(golden, toy, shift, steps):
    draws, index = drawn(golden), int(golden.input("start_idx"))
    grid = levels.sigmas(len(toy.grid.labels), shift, steps)
    x = flow.noised(toy.z, grid[index], draws["noise"])
    golden.check("sd3_noisy_init", x)
    teacher = velocity(toy, toy.teacher, toy.y)

    def guided(share):
        return guidance.mixed(teacher, velocity(toy, toy.teacher), toy.scale(share[None]))

    target = driver.sample(guided(draws["scale"]), solvers.euler(), x, grid, start=jnp.asarray(index))
    golden.check("sd3_teacher_target", target)

    def made(params):
        return flow.jumped(velocity(toy, params, toy.y), x, grid[index])

    golden.check("sd3_student_x0", made(toy.student))
    trained = jnp.asarray(levels.trained(shift, steps))
    sigma = trained[draws["matching_label"]]

    def matching(params):
        student = made(params)
        x_t = jax.lax.stop_gradient(flow.noised(student, sigma, draws["matching_noise"]))
        real, fake = guided(draws["matching_scale"])(x_t, sigma), velocity(toy, toy.student, toy.y)(x_t, sigma)
        return 2 * identity.squared(student, flow.direction(student, real, fake)).mean()

    at = trained[-golden.input("gan_timesteps")][draws["rival_label"]]
    adversary, head = adversarial.build({"name": "lsgan"}), flash_toy.head(golden, "disc_out")

    def logits(head, x0):
        return flash_toy.scored(head, teacher(flow.noised(x0, at, draws["rival_noise"]), at))

    def generator(params):
        return adversary.generator(logits(head, made(params))).mean()

    def discriminator(head):
        real, fake = logits(head, toy.z), logits(head, made(toy.student))
        return (adversary.real(real) + adversary.fake(fake)).mean()

    losses = {
        "sd3_distill_l2": lambda params: distances.l2()(made(params), target).mean(),
        "sd3_dmd": matching,
        "sd3_gan_lsgan_G": generator,
        "sd3_gan_lsgan_D": discriminator,
    }
    for key, loss in losses.items():
        value, grads = jax.value_and_grad(loss)(head if key.endswith("_D") else toy.student)
        golden.check(key, value)
        check_tree(golden, key, grads)
