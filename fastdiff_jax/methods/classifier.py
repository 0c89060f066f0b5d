"""Classifier: trains the feature net of a data set on noisy, slightly shifted images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import registry
from fastdiff_jax.rng import stream
from fastdiff_jax.types import Array, Method, Params, Parts


class Settings(NamedTuple):
    """How images are perturbed; ours, for digits."""

    noise: float = 0.1  # standard deviation, in model units
    shift: int = 1  # pixels, at most, along either axis
    background: float = -1.0  # what is shifted in


class State(NamedTuple):
    """A classifier in training."""

    step: Array
    params: Params
    opt: optax.OptState


def shifted(images: Array, offsets: Array, most: int, background: float) -> Array:
    """Images (B,H,W,C) moved down and right by offsets (B,2), whole pixels in [-most, most]."""
    margins = ((0, 0), (most, most), (most, most), (0, 0))
    padded = jnp.pad(images, margins, constant_values=background)

    def crop(image, offset):
        down, right = most - offset
        return jax.lax.dynamic_slice(image, (down, right, 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def build(config, parts: Parts) -> Method:
    """A classifier's training as a method; it has no EMA and no samplers.

    Args:
      config: see `Settings`.
      parts: models["classifier"], optimizers["classifier"], labels, shape.
    Metrics: loss, the mean cross-entropy; accuracy, on the perturbed images.
    Raises: ValueError for unknown settings, or data without labels.
    """
    settings = registry.options(Settings, config, "method classifier")
    if parts.labels is None:
        raise ValueError("method classifier needs labelled data; these have no classes.")
    network, tx = parts.models["classifier"].network, parts.optimizers["classifier"]

    def init(key, frozen):
        del frozen
        params = network.init(key, jnp.zeros((1, *parts.shape)), {})
        return State(jnp.zeros((), jnp.int32), params, tx.init(params))

    def draw(key, batch, variant):
        del variant
        shape, most = batch["image"].shape, settings.shift
        offsets = jax.random.randint(stream(key, "shift"), (shape[0], 2), -most, most + 1)
        return {"noise": jax.random.normal(stream(key, "noise"), shape), "shift": offsets}

    def update(state, frozen, batch, draws, variant):
        del frozen, variant
        images = shifted(batch["image"], draws["shift"], settings.shift, settings.background)
        images = images + settings.noise * draws["noise"]

        def loss(params):
            logits = network.apply(params, images, jnp.zeros(len(images), images.dtype), {})
            entropies = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return entropies.mean(), jnp.mean(logits.argmax(-1) == batch["label"])

        (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt = tx.update(grads, state.opt, state.params)
        state = State(state.step + 1, optax.apply_updates(state.params, updates), opt)
        return state, {"loss": value, "accuracy": accuracy}

    return Method(init, draw, update, weights=lambda state: state.params, samplers={})
