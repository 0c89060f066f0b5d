"""Inpainting: the network is told which pixels to repaint, and all others as they are.

Source: Rombach et al. 2022 (arXiv:2112.10752), section 4.5: mask and masked image as channels of the input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastdiff_jax import registry
from fastdiff_jax.metrics import paired
from fastdiff_jax.types import Array, Key, Task


class Settings(NamedTuple):
    """Which pixels are repainted; lengths are shares of an image's side."""

    boxes: float = 0.5  # share of images that lose a box; the others lose strokes
    smallest: float = 0.25  # side of a box
    largest: float = 0.75
    strokes: int = 3  # straight, of random ends
    thickness: float = 0.15  # of a stroke


def build(config, models, shape: tuple[int, ...]) -> Task:
    """"concat" (B,H,W,1+C): the mask, one where pixels are to be repainted, and the image, zero there.

    Columns: psnr_masked, of the repainted pixels; psnr_known, of the given ones; feature_distance from the
    original. All are of images as the network made them; pictures show them with the known pixels pasted back.

    Args:
      config: see `Settings`.
    Raises: ValueError for unknown settings, and sizes that no box or stroke has.
    """
    del models
    settings = registry.options(Settings, config, "task inpainting")
    check(settings)

    def draw(key, batch):
        keys = jax.random.split(key, len(batch["image"]))
        return {"mask": jax.vmap(lambda key: mask(key, shape[:2], settings))(keys)[..., None]}

    def cond(batch, draws, frozen):
        return {"concat": masked(batch["image"], draws["mask"])}

    def shown(batch, draws):
        return batch["image"] * (1 - draws["mask"])

    def pasted(made, batch, draws):
        return jnp.where(draws["mask"] > 0, made, batch["image"])

    def measure(made, batch, draws, features):
        image, hole = batch["image"], draws["mask"]
        row = {"psnr_masked": paired.psnr(made, image, hole), "psnr_known": paired.psnr(made, image, 1 - hole)}
        return row | paired.feature_distance(features, made, image)

    return Task(draw, cond, shown=shown, pasted=pasted, measure=measure)


def check(settings: Settings) -> None:
    """Raises ValueError for shares and sizes that no box or stroke has."""
    if not 0 <= settings.boxes <= 1 or not 0 < settings.smallest <= settings.largest < 1:
        raise ValueError(
            "task inpainting: boxes is a share, and 0 < smallest <= largest < 1 are of the side; got "
            f"{settings.boxes}, {settings.smallest} and {settings.largest}."
        )
    if settings.strokes < 1 or not 0 < settings.thickness < 1:
        raise ValueError(
            "task inpainting: strokes is a number from 1, and thickness a share of the side; got "
            f"{settings.strokes} and {settings.thickness}."
        )


def masked(image: Array, mask: Array) -> Array:
    """(B,H,W,1+C): the mask (B,H,W,1), one where pixels are to be repainted, and the image, zero there."""
    return jnp.concatenate([mask.astype(image.dtype), image * (1 - mask)], axis=-1)


def mask(key: Key, size: tuple[int, int], settings: Settings) -> Array:
    """(H,W) float32, one where pixels are to be repainted: at least one, and of a box not all."""
    kind, box_key, stroke_key = jax.random.split(key, 3)
    boxed = jax.random.uniform(kind) < settings.boxes
    drawn = jnp.where(boxed, box(box_key, size, settings), strokes(stroke_key, size, settings))
    return drawn.astype(jnp.float32)


def box(key: Key, size: tuple[int, int], settings: Settings) -> Array:
    """(H,W) bool: a rectangle inside the image, its sides uniform from `smallest` to `largest`."""
    extents, corners = jax.random.uniform(key, (2, 2))
    side, inside = jnp.asarray(size, jnp.float32), []
    share = settings.smallest + (settings.largest - settings.smallest) * extents
    length = jnp.clip(jnp.round(share * side), 1, side - 1)
    start = jnp.floor(corners * (side - length + 1))
    for axis in range(2):
        at = jnp.arange(size[axis])
        inside.append((at >= start[axis]) & (at < start[axis] + length[axis]))
    return inside[0][:, None] & inside[1][None, :]


def strokes(key: Key, size: tuple[int, int], settings: Settings) -> Array:
    """(H,W) bool: pixels with a centre within half a thickness of a line, and those that lines start in."""
    scale = jnp.asarray(size, jnp.float32)
    begin, end = jax.random.uniform(key, (2, settings.strokes, 2)) * scale
    centres = jnp.stack(jnp.meshgrid(*(jnp.arange(n) + 0.5 for n in size), indexing="ij"), axis=-1)[:, :, None]
    along, offset = end - begin, centres - begin
    position = (offset * along).sum(-1) / jnp.maximum((along**2).sum(-1), 1e-12)
    nearest = begin + jnp.clip(position, 0, 1)[..., None] * along
    distance = jnp.sqrt(((centres - nearest) ** 2).sum(-1))
    reached = distance <= settings.thickness * min(size) / 2
    first = (jnp.floor(begin) == jnp.floor(centres)).all(-1)  # thin strokes may pass between all centres
    return (reached | first).any(-1)
