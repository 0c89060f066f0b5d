"""Teachers: denoising score matching with EMA, for any process whose loss is an `Objective`.

Source: Karras et al. 2022 (arXiv:2206.00364), appendix F.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import conditioning, precond, registry, trees
from fastdiff_jax.losses import accumulation
from fastdiff_jax.rng import stream
from fastdiff_jax.solvers import sampling
from fastdiff_jax.types import Array, Method, Params, Parts

TASKS = True  # it takes conditions besides the label
AUGMENTED = "student"  # the role that is told of augmentation
OTHERS = ("dropout", "label_kept", "augment", "task")  # draws that are not the objective's


class Options(NamedTuple):
    """Settings of a teacher's training; defaults are EDM's for CIFAR-10."""

    ema_half_life: float = 500e3  # images
    ema_ramp: float | None = 0.05  # share of the images seen that caps the half-life
    # share of samples whose label is hidden, with what else the task guides: what guidance later needs
    label_dropout: float = 0.0
    loss_scale: float = 1.0  # gradients are not unscaled: Adam does not mind
    start_images: float = 0.0  # images that the initial weights have seen
    accumulation: int = 1  # rounds a batch is split into
    trains: Sequence[str] = ()  # top-level names of the weights that are trained; (): all, else the others stay
    samplers: Mapping = {}  # {report name: {"name", "nfe", ...}}


class State(NamedTuple):
    """A teacher in training, and its average."""

    step: Array  # () int32, steps done
    params: Params
    ema: Params
    opt: optax.OptState


def build(config, parts: Parts) -> Method:
    """A teacher's training as a method.

    Args:
      config: see `Options`.
      parts: models["student"], optimizers["student"], objective, schedule, shape, labels, augment, task. The
        augmented image is what is denoised, and what the task makes its conditions of; samplers give no
        augmentation labels, which is "not changed".
    Frozen: what the task reads; at `init` optionally "initial", weights to start from, which may lack those of
      `trains`, as an adapter's base does.
    Metrics: loss, the sum over pixels and mean over samples; ema_beta.
    Raises: ValueError for unknown settings, an objective of another kind of model, and in `init` for weights
      that do not fit, or of which `trains` names some that there are not.
    """
    config = registry.options(Options, config, "method teacher")
    model, tx, objective = parts.models["student"], parts.optimizers["student"], parts.objective
    labels, task = parts.labels, parts.task
    hidden = conditioning.guided(labels, task)
    if config.trains:
        tx = optax.partition({True: tx, False: optax.set_to_zero()}, partial(_trained, config.trains))
    objective.bind(model, {})  # refuses a model of another kind now, not in the first step

    def init(key, frozen):
        cond = conditioning.blank(labels, task, parts.shape, frozen)
        params = model.network.init(key, jnp.zeros((1, *precond.input_shape(model, parts.shape))), cond)
        if missing := [name for name in config.trains if name not in params]:
            raise ValueError(f"method teacher trains {missing[0]!r}, and the weights are {', '.join(params)}.")
        if "initial" in frozen:
            bare = not set(config.trains) & set(frozen["initial"])
            base = {name: part for name, part in params.items() if not (bare and name in config.trains)}
            trees.check_fits(frozen["initial"], base, "student")
            params = trees.copy(trees.grafted(frozen["initial"], params))
        return State(jnp.zeros((), jnp.int32), params, trees.copy(params), tx.init(params))

    def draw(key, batch, variant):
        draws = dict(objective.draw(key, batch["image"].shape), dropout=stream(key, "dropout"))
        if parts.augment is not None:
            draws["augment"] = parts.augment.draw(stream(key, "augment"), len(batch["image"]))
        if task is not None:
            draws["task"] = task.draw(stream(key, "task"), batch)
        if hidden:
            size = batch["image"].shape[:1]
            draws["label_kept"] = (
                jax.random.uniform(stream(key, "label"), size) >= config.label_dropout
            )
        return draws

    def update(state, frozen, batch, draws, variant):
        size = len(batch["image"])
        own = {name: values for name, values in draws.items() if name not in OTHERS}
        image, told = batch["image"], {}
        if parts.augment is not None:
            image, told["augment"] = parts.augment.apply(image, draws["augment"])
        told |= conditioning.conditions(labels, task, {**batch, "image": image}, draws.get("task"), frozen)
        if hidden:
            told = conditioning.kept(told, draws["label_kept"], hidden)
        samples = {"image": image, "cond": told} | own  # the objective's draws, one a sample

        def loss(params, part, dropout):
            bound = objective.bind(model, params, part["cond"], dropout)
            total = objective.loss(bound, part["image"], part, step=state.step).sum() / size
            return config.loss_scale * total, total

        total, grads = accumulation.value_and_grad(
            loss, state.params, samples, draws["dropout"], config.accumulation
        )
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        images = trees.images_seen(state.step, size, config.start_images)
        beta = trees.half_life_beta(images, size, config.ema_half_life, config.ema_ramp)
        ema = trees.ema(state.ema, params, beta)
        return State(state.step + 1, params, ema, opt), {"loss": total, "ema_beta": beta}

    known = hidden if config.label_dropout > 0 else ()  # what it has learned to do without, for guidance
    samplers = sampling.samplers(config.samplers, model, parts.schedule, parts.shape, hides=known)
    return Method(
        init, draw, update, lambda state: state.ema, samplers, cost=lambda *_: 3, raw=lambda state: state.params
    )


def _trained(names, params):
    """For each leaf whether it is below one of the top-level names."""
    return {name: jax.tree.map(lambda _: name in names, part) for name, part in params.items()}
