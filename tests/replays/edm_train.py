"""EDM's training: the order of images, rates, EMA, and steps by `Method.update`, one with broken gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax import precond, trees
from fastdiff_jax.data import order
from fastdiff_jax.losses import matching
from fastdiff_jax.methods import teacher
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.types import Parts
from replays import toys


def replay(golden):
    replay_sampler(golden)
    replay_schedules(golden)
    replay_loop(golden)


def replay_sampler(golden):
    cfg = golden.config("sampler/cfg")
    for key in golden.keys("sampler/"):
        name, wanted = key.split("/")[1], golden.arrays[key]
        if name == "cfg":
            continue
        rank, world = map(int, name.removeprefix("rank").split("of")) if name.startswith("rank") else (0, 1)
        shuffle = name != "noshuffle"
        stream = order.windowed(cfg["n"], cfg["seed"], cfg["window_size"], shuffle)
        own = list(itertools.islice(stream, rank, rank + len(wanted) * world, world))
        golden.check(key, own, rtol=0.0)
        if shuffle and cfg["window_size"] == 0.5:  # the pipeline's
            places = rank + world * np.arange(len(wanted))
            golden.check(key, order.Windowed(cfg["n"], cfg["seed"])(places), rtol=0.0)


def replay_schedules(golden):
    cfg, images = (
        golden.config("sched/cfg"),
        jnp.asarray(golden.input("sched/cur_nimg"), jnp.float64),
    )
    ramp, half_life = 1000.0 * cfg["lr_rampup_kimg"], 1000.0 * cfg["ema_halflife_kimg"]
    golden.check("sched/lr", optimizers.learning_rate(images, base=cfg["lr"], ramp_images=ramp))
    for key, share in (("ema_beta", cfg["ema_rampup_ratio"]), ("ema_beta_norampup", None)):
        betas = trees.half_life_beta(images, cfg["batch_size"], half_life, share)
        golden.check(f"sched/{key}", jnp.broadcast_to(betas, images.shape))


def replay_loop(golden):
    cfg, params = golden.config("loop/cfg"), toys.parameters(golden, "loop/init/")
    steps = sorted(int(key.split("/")[1]) for key in golden.keys("loop/") if key.endswith("/rnd"))
    (b1, b2), batch = cfg["betas"], cfg["batch_size"]
    request = dict(
        name="adam",
        learning_rate=cfg["lr"],
        ramp_images=1000.0 * cfg["lr_rampup_kimg"],
        b1=b1,
        b2=b2,
        eps=cfg["eps"],
    )
    tx = optax.chain(broken_at(cfg["nan_step"]), optimizers.build(request, batch, 0.0))
    settings = dict(
        ema_half_life=1000.0 * cfg["ema_halflife_kimg"],
        ema_ramp=cfg["ema_rampup_ratio"],
        loss_scale=cfg["loss_scaling"],
    )
    size = len(params["W1"])
    parts = Parts(
        {"student": toys.model(params, precond.edm())},
        {"student": tx},
        (size,),
        objective=matching.edm(),
    )
    method = teacher.build(settings, parts)
    state = teacher.State(jnp.zeros((), jnp.int32), params, trees.copy(params), tx.init(params))
    update = jax.jit(method.update, static_argnums=4)
    for step in steps:
        at = f"loop/{step}/"
        images, noise = (
            jnp.asarray(golden.input(at + key)).reshape(batch, size) for key in ("images", "eps")
        )
        draws = {
            "level": jnp.asarray(golden.input(at + "rnd")),
            "noise": noise,
            "dropout": jax.random.key(0),
        }
        state, metrics = update(state, {}, {"image": images}, draws, None)
        golden.check(at + "loss", metrics["loss"])
        golden.check(at + "beta", metrics["ema_beta"])
        toys.check_tree(golden, at + "net_", state.params)
        toys.check_tree(golden, at + "ema_", state.ema)


def broken_at(step: int) -> optax.GradientTransformation:
    """What the recorded run did at one step: NaN, +inf and -inf in the first three gradients of b1."""

    def update(grads, count, params=None):
        wrong = grads["b1"].at[:3].set(jnp.array([np.nan, np.inf, -np.inf]))
        return grads | {"b1": jnp.where(count == step, wrong, grads["b1"])}, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
