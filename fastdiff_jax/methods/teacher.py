"""Teachers: denoising score matching with EMA, for any process whose loss is an `Objective`.

Source: Karras et al. 2022 (arXiv:2206.00364), appendix F.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import precond, registry, trees
from fastdiff_jax.losses import accumulation
from fastdiff_jax.rng import stream
from fastdiff_jax.solvers import sampling
from fastdiff_jax.types import Array, Method, Params, Parts

OTHERS = ("dropout", "label_kept", "augment")  # draws that are not the objective's


class Options(NamedTuple):
    """Settings of a teacher's training; defaults are EDM's for CIFAR-10."""

    ema_half_life: float = 500e3  # images
    ema_ramp: float | None = 0.05  # share of the images seen that caps the half-life
    label_dropout: float = 0.0  # share of samples whose label is hidden: what guidance later needs
    loss_scale: float = 1.0  # gradients are not unscaled: Adam does not mind
    start_images: float = 0.0  # images that the initial weights have seen
    accumulation: int = 1  # rounds a batch is split into
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
      parts: models["student"], optimizers["student"], objective, schedule, shape, labels, augment. The
        augmented image is what is denoised; samplers give no augmentation labels, which is "not changed".
    Frozen: nothing; at `init` optionally "initial", weights to start from.
    Metrics: loss, the sum over pixels and mean over samples; ema_beta.
    Raises: ValueError for unknown settings, an objective of another kind of model, and in `init` for weights
      that do not fit.
    """
    config = registry.options(Options, config, "method teacher")
    model, tx, objective = parts.models["student"], parts.optimizers["student"], parts.objective
    objective.bind(model, {})  # refuses a model of another kind now, not in the first step

    def init(key, frozen):
        cond = {} if parts.labels is None else {"label": jnp.zeros((1, len(parts.labels)))}
        params = model.network.init(key, jnp.zeros((1, *precond.input_shape(model, parts.shape))), cond)
        if "initial" in frozen:
            trees.check_fits(frozen["initial"], params, "student")
            params = trees.copy(frozen["initial"])
        return State(jnp.zeros((), jnp.int32), params, trees.copy(params), tx.init(params))

    def draw(key, batch, variant):
        draws = dict(objective.draw(key, batch["image"].shape), dropout=stream(key, "dropout"))
        if parts.augment is not None:
            draws["augment"] = parts.augment.draw(stream(key, "augment"), len(batch["image"]))
        if parts.labels is not None:
            size = batch["image"].shape[:1]
            draws["label_kept"] = (
                jax.random.uniform(stream(key, "label"), size) >= config.label_dropout
            )
        return draws

    def update(state, frozen, batch, draws, variant):
        size = len(batch["image"])
        own = {name: values for name, values in draws.items() if name not in OTHERS}
        samples = {"image": batch["image"]} | own  # the objective's draws, one a sample
        if parts.augment is not None:
            samples["image"], samples["augment"] = parts.augment.apply(batch["image"], draws["augment"])
        if parts.labels is not None:
            one_hot = jax.nn.one_hot(batch["label"], len(parts.labels))
            samples["label"] = one_hot * draws["label_kept"][:, None]

        def loss(params, part, dropout):
            cond = {k: part[k] for k in part if k in ("label", "augment")}
            bound = objective.bind(model, params, cond, dropout)
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

    samplers = sampling.samplers(config.samplers, model, parts.schedule, parts.shape)
    return Method(
        init, draw, update, lambda state: state.ema, samplers, cost=lambda *_: 3, raw=lambda state: state.params
    )
