"""Inpainting towards a reference: besides mask and known pixels the network is told features of an image.

In training that is the image itself, so the features say what the hole held. Nothing here is about faces: the
face-swapping of arXiv:2406.02347 has no published code, and how it is conditioned was not checked.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.metrics import paired
from fastdiff_jax.tasks import inpainting
from fastdiff_jax.types import Array, Task


class Settings(NamedTuple):
    """Whose features, and which pixels are repainted."""

    features: str = "features"  # the model with `weights` that makes them
    tap: str = "features"  # of that network
    holes: Mapping = {}  # `inpainting.Settings`


def build(config, models, shape: tuple[int, ...]) -> Task:
    """"concat" as `inpainting` has it, and "reference" (B,K), the reference's features at unit mean square.

    Dropout hides the reference with the label, and guidance amplifies both.

    Columns: those of inpainting, and the mean cosine between features of what was made and of an image:
    similarity, its reference; similarity_class, another one's reference of the same label; similarity_shuffled,
    any other one's.

    Args:
      config: see `Settings`.
      models: with the one whose features are the condition; its weights are `frozen` under the same name.
    Raises: ValueError for unknown settings, and if there is no such model.
    """
    settings = registry.options(Settings, config, "task reference")
    if settings.features not in models:
        raise ValueError(
            f"task reference: there is no model {settings.features!r} to make features; known: "
            f"{', '.join(models)}. Give config.models one with `weights`."
        )
    holes, network = inpainting.build(settings.holes, models, shape), models[settings.features].network

    def cond(batch, draws, frozen):
        image = batch["image"]
        levels = jnp.zeros(len(image), image.dtype)
        weights = frozen[settings.features]
        _, taken = network.apply(weights, image, levels, {}, taps=(settings.tap,))
        return holes.cond(batch, draws, frozen) | {"reference": unit(taken[settings.tap])}

    def measure(made, batch, draws, features):
        row = holes.measure(made, batch, draws, features)
        if features is None:
            return row
        own, wanted = features(made), features(batch["image"])
        row["similarity"] = paired.similarity(own, wanted)
        for name, order in paired.others(np.asarray(batch["label"])).items():
            row[f"similarity_{name}"] = paired.similarity(own, wanted[order])
        return row

    return holes._replace(cond=cond, guided=("label", "reference"), measure=measure)


def unit(features: Array) -> Array:
    """Features (B,...) as vectors (B,K) of mean square one: only their direction is told."""
    features = features.reshape(len(features), -1)
    scale = jnp.sqrt((features**2).mean(-1, keepdims=True))
    return features / jnp.maximum(scale, 1e-6)
