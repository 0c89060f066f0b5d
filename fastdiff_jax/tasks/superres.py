"""Super-resolution: the network is told the means over blocks of pixels, and makes all of them.

Source: Saharia et al. 2021 (arXiv:2104.07636): the upsampled image as channels of the input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastdiff_jax import registry
from fastdiff_jax.metrics import paired
from fastdiff_jax.types import Array, Task


class Settings(NamedTuple):
    """How much smaller the given image is."""

    factor: int = 4  # side of a block


def build(config, models, shape: tuple[int, ...]) -> Task:
    """"concat" (B,H,W,C): the image's means over blocks, upsampled again.

    Columns: psnr and feature_distance from the original, psnr_low, of means over blocks: what was given. The
    table has a row "bicubic", the upsampled image itself.

    Args:
      config: see `Settings`.
    Raises: ValueError for unknown settings, and blocks that do not tile the image.
    """
    del models
    factor = registry.options(Settings, config, "task superres").factor
    if not isinstance(factor, int) or factor < 2 or shape[0] % factor or shape[1] % factor:
        raise ValueError(f"task superres: blocks of {factor} do not tile {shape}; use a divisor of the sides.")

    def upsampled(batch):
        return bicubic(pooled(batch["image"], factor), factor)

    def cond(batch, draws, frozen):
        return {"concat": upsampled(batch)}

    def shown(batch, draws):
        return jnp.repeat(jnp.repeat(pooled(batch["image"], factor), factor, 1), factor, 2)

    def measure(made, batch, draws, features):
        image = batch["image"]
        low = paired.psnr(pooled(made, factor), pooled(image, factor))
        row = {"psnr": paired.psnr(made, image), "psnr_low": low}
        return row | paired.feature_distance(features, made, image)

    def baselines(batch, draws):
        return {"bicubic": upsampled(batch)}

    return Task(lambda key, batch: {}, cond, shown=shown, measure=measure, baselines=baselines)


def pooled(images: Array, factor: int) -> Array:
    """(B,H/factor,W/factor,C) means over blocks of images (B,H,W,C)."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))


def bicubic(images: Array, factor: int) -> Array:
    """(B,H factor,W factor,C) in [-1, 1] by Keys' cubic, a = -1/2, with its weights renormalised at borders."""
    batch, height, width, channels = images.shape
    larger = (batch, height * factor, width * factor, channels)
    return jnp.clip(jax.image.resize(images, larger, "cubic"), -1, 1)
