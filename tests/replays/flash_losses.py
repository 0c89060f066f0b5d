"""The student's and the discriminator's losses with their gradients, out of whole updates of the method."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax import precond
from fastdiff_jax.losses import adversarial, curriculum
from fastdiff_jax.methods import flash
from fastdiff_jax.precond import denoiser
from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers import driver, multistep
from fastdiff_jax.types import Model, Parts, Task
from replays import flash_toy
from replays.flash_toy import array, check_tree

ADVERSARIES = {"nonsaturating": "non_saturating"}  # the others are called as here
HIDDEN = "hidden1"  # the toy network's tap


def replay(golden):
    toy, draws = flash_toy.toy(golden), drawn(golden)
    for key, asked in (("gan", array(golden, "gan_timesteps")), ("dmd", draws["matching_label"])):
        golden.check(f"grid_index_{key}", discrete.looked_up(asked, toy.grid.labels))
    for key in golden.keys("noisy_init"):
        replay_targets(golden, toy, draws, key.removeprefix("noisy_init"))
    for key in golden.keys("distill_"):
        if "_grad_" not in key:
            replay_distilled(golden, toy, draws, key)
    for key in golden.keys("dmd_"):
        if "_grad_" not in key:
            metrics, after = stepped(golden, toy, draws, matching=1.0, renoise=key.removeprefix("dmd_"))
            golden.check(key, metrics["loss_matching"])
            check_tree(golden, key, after.opt)
    for key in golden.keys("total_"):
        if "_grad_" not in key:
            _, rule, kind = key.split("_")
            weights = dict(zip(curriculum.WEIGHTS, map(float, golden.input("scales_total"))))
            metrics, after = stepped(golden, toy, draws, kind, renoise=rule, **weights)
            golden.check(key, metrics["loss_student"])
            check_tree(golden, key, after.opt)
    runs = {}  # one update makes both networks' losses
    for key in golden.keys("gan_"):
        if found := re.fullmatch(r"gan_(grid|exact)_([a-z]+?)(out)?_(G|D)(_teacherreal)?", key):
            rule, kind, out, who, real = found.groups()
            runs.setdefault((rule, kind, out, real), {})[who] = key
    for run, keys in runs.items():
        replay_adversarial(golden, toy, draws, keys, *run)


def index_of(golden, suffix):
    return int(suffix.removeprefix("_start")) if suffix else int(golden.input("start_idx"))


def drawn(golden):
    """The draws of one update; `index` is added by the pieces."""
    return {
        "scale": array(golden, "u_guidance")[0],
        "noise": array(golden, "noise_init"),
        "matching_label": array(golden, "t_dmd"),
        "matching_scale": array(golden, "u_guidance_dmd")[0],
        "matching_noise": array(golden, "noise_dmd"),
        "rival_label": array(golden, "gan_idx"),
        "rival_noise": array(golden, "noise_gan"),
    }


def replay_targets(golden, toy, draws, suffix):
    """The noised image, the teacher's end and the student's jump, in the model's own coordinates."""
    index = index_of(golden, suffix)
    golden.check(f"start_timestep{suffix}", toy.grid.labels[index])
    x, sigma = toy.grid.start(toy.z, jnp.asarray(index), draws["noise"])
    golden.check(f"noisy_init{suffix}", x / jnp.sqrt(1 + sigma**2))
    guided = toy.guided(toy.scale(golden.input("u_guidance")))
    solved = driver.sample(guided, multistep.dpmpp(2), x, toy.grid.levels, start=jnp.asarray(index))
    golden.check(f"teacher_target{suffix}", solved)
    jump = precond.with_boundary(toy.model.precond, discrete.clock(toy.abar))
    made = denoiser(toy.model._replace(precond=jump), toy.student, {"label": toy.y})(x, sigma)
    golden.check(f"student_x0{suffix}", made)


def stepped(
    golden, toy, draws, kind="lsgan", tap=HIDDEN, *,
    suffix="", distance="l2", renoise="exact", real="data", **weights,
):  # fmt: skip
    """Metrics of one update, and the state after it: its optimizers keep the gradients and move nothing."""
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    loss = {"name": ADVERSARIES.get(kind, kind)}
    head = flash_toy.head(golden, "disc" if tap == HIDDEN else "disc_out")
    head = adversarial.bounded(head, adversarial.build(loss))
    models = dict.fromkeys(("student", "teacher"), toy.model)
    models["discriminator"] = Model(flash_toy.scorer(head), precond.identity())
    labels = np.full(toy.y.shape[1], 1 / toy.y.shape[1])
    given = lambda batch, draws, frozen: {"label": toy.y[: len(batch["image"])]}
    task = Task(lambda key, batch: {}, given)  # conditions that are no one-hot labels
    parts = Parts(models, {"student": keep, "discriminator": keep}, toy.z.shape[1:], labels, task=task)
    columns = {name: (weights.get(name, 0.0),) for name in curriculum.WEIGHTS}
    method = flash.build(
        dict(
            grid=len(toy.grid.labels), guidance=toy.span, renoise=renoise, distance=dict(name=distance),
            stages=dict(steps=(1,), modes=((1.0,),), **columns),
            adversarial=dict(
                tap=tap, loss=loss, labels=tuple(map(int, golden.input("gan_timesteps"))), real=real
            ),
        ),
        parts,
    )  # fmt: skip
    frozen = {"teacher": toy.teacher}
    state = method.init(jax.random.key(0), frozen)._replace(params=toy.student, head=head)
    own = draws | {"index": jnp.asarray(index_of(golden, suffix))}
    batch = {"image": toy.z, "label": jnp.zeros(len(toy.z), jnp.int32)}
    after, metrics = method.update(state, frozen, batch, {"student": own, "rival": own}, flash.Turn(0, 0))
    return metrics, after


def replay_distilled(golden, toy, draws, key):
    _, distance, *suffix = key.split("_")
    suffix = "".join(f"_{part}" for part in suffix)
    metrics, after = stepped(golden, toy, draws, distance=distance, suffix=suffix, distill=1.0)
    golden.check(key, metrics["loss_distill"])
    check_tree(golden, key, after.opt)


def replay_adversarial(golden, toy, draws, keys, rule, kind, out, real):
    """`out`: the head is on the predicted noise, not on hidden units. Keys are those of "G" and of "D"."""
    tap, real = adversarial.NOISE if out else HIDDEN, "teacher" if real else "data"
    metrics, after = stepped(golden, toy, draws, kind, tap, renoise=rule, real=real, adversarial=1.0)
    found = {"G": ("loss_adversarial", after.opt), "D": ("loss_discriminator", after.head_opt)}
    for who, key in keys.items():
        name, grads = found[who]
        golden.check(key, metrics[name])
        check_tree(golden, key, grads)
