"""Images along an edge map, which a small adapter beside the network reads.

Source: Mou et al. 2023 (arXiv:2302.08453), with Sobel's edges instead of learned or Canny ones.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.metrics import paired
from fastdiff_jax.types import Array, Task


class Settings(NamedTuple):
    """What counts as an edge."""

    threshold: float = 0.4  # of `sobel`, in model units a pixel


def build(config, models, shape: tuple[int, ...]) -> Task:
    """"adapter" (B,H,W,1): one where the image has an edge. Guidance leaves it: only the label is hidden.

    Columns: edge_f1, of the edges of what was made and of the original, over all pixels of a set;
    feature_distance from the original. The table has a row of what its class alone says: another image of it.

    Args:
      config: see `Settings`.
    Raises: ValueError for unknown settings, or a threshold that is not positive.
    """
    del models, shape
    threshold = registry.options(Settings, config, "task edges").threshold
    if not threshold > 0:
        raise ValueError(f"task edges: the threshold is positive; got {threshold}.")

    def edges(images):
        return (sobel(images) > threshold).astype(jnp.float32)

    def cond(batch, draws, frozen):
        return {"adapter": edges(batch["image"])}

    def shown(batch, draws):
        image = batch["image"]
        return jnp.broadcast_to(2 * edges(image) - 1, image.shape)

    def measure(made, batch, draws, features):
        image = batch["image"]
        row = {"edge_f1": paired.f1(edges(made), edges(image))}
        return row | paired.feature_distance(features, made, image)

    def baselines(batch, draws):
        return {"another of its class": batch["image"][paired.others(np.asarray(batch["label"]))["class"]]}

    return Task(lambda key, batch: {}, cond, shown=shown, measure=measure, baselines=baselines)


def sobel(images: Array) -> Array:
    """(B,H,W,1) length of Sobel's gradient of the images' channel mean, per pixel; borders are repeated.

    A ramp of slope s has s; a step of height h has h / 2 on both of its sides.
    """
    gray = jnp.pad(jnp.mean(images, axis=-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = lambda values, axis: _shifted(values, axis, 2) - _shifted(values, axis, 0)
    along = lambda values, axis: (
        _shifted(values, axis, 0) + 2 * _shifted(values, axis, 1) + _shifted(values, axis, 2)
    )
    vertical, horizontal = across(along(gray, 2), 1) / 8, across(along(gray, 1), 2) / 8
    return jnp.sqrt(vertical**2 + horizontal**2)[..., None]


def _shifted(values, axis, start):
    """The part of a padded axis that begins at `start`."""
    size = values.shape[axis] - 2
    return jnp.take(values, jnp.arange(start, start + size), axis=axis)
