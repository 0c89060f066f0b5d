"""Non-leaky augmentation: images are changed at random, and the network is told how.

As it is told, it can be asked at sampling for images that were not changed: labels of zero. A transform fires
for a sample when its coin u ~ U(0,1) falls below m p: p is common to all, m the transform's own multiplier.

Source: Karras et al. 2022 (arXiv:2206.00364), App. F.2; Karras et al. 2020 (arXiv:2006.06676), App. B.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.data import warp
from fastdiff_jax.rng import stream
from fastdiff_jax.types import Array, Augment, Draws, Key, expand

GREY = np.array([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3)  # luma's axis of homogeneous colours


class Settings(NamedTuple):
    """Which transforms, how often and how far; by default none."""

    p: float  # probability, before a transform's multiplier
    xflip: float = 0.0
    yflip: float = 0.0
    rotate_int: float = 0.0  # by quarter turns
    translate_int: float = 0.0  # by whole pixels
    scale: float = 0.0
    rotate_frac: float = 0.0
    aniso: float = 0.0  # stretched along one direction
    translate_frac: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    lumaflip: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    translate_int_max: float = 1 / 8  # share of the side
    scale_std: float = 0.2  # octaves
    rotate_frac_max: float = 1.0  # half turns
    aniso_std: float = 0.2  # octaves
    aniso_rotate_prob: float = 0.5
    translate_frac_std: float = 1 / 8  # share of the side
    brightness_std: float = 0.2
    contrast_std: float = 0.5  # octaves
    hue_max: float = 1.0  # half turns
    saturation_std: float = 1.0  # octaves
    margin: str = "batch"  # or "full", see `warp.warped`


# "edm" is the training of EDM: nine labels. The multiplier of xflip lets its own coin decide at any p.
PIPES = {
    "edm": dict(xflip=1e8, yflip=1.0, scale=1.0, rotate_frac=1.0, aniso=1.0, translate_frac=1.0),
    "chosen": {},
}
PIXEL = {"xflip": 1, "yflip": 1, "rotate_int": 2, "translate_int": 2}  # numbers of labels, in order
GEOMETRIC = {"scale": 1, "rotate_frac": 2, "aniso": 2, "translate_frac": 2}
COLOUR = {"brightness": 1, "contrast": 1, "lumaflip": 1, "hue": 2, "saturation": 1}
LABELS = PIXEL | GEOMETRIC | COLOUR
CHOICES = {"xflip": 2, "yflip": 2, "rotate_int": 4, "lumaflip": 2}  # w is one of so many
UNIFORM = ("translate_int", "rotate_frac", "hue")  # w is U(0,1); of all others, normal
PAIRS = ("translate_int", "translate_frac")  # w is (B,2), in x and y


def pipe(config: Mapping) -> Augment:
    """The transforms of PIPES[config.name], changed and completed by the config's other entries.

    `draw(key, B)` gives w and u of every transform in use, "scale_w" (B,), "scale_u" (B,), ..., raw;
    `apply(images (B,S,S,C), draws)` gives images and labels (B,A). Shapes are static, so it is jitted
    within the training step. C is 1 or 3 if colours are changed.

    Raises: ValueError for unknown names and settings, and values out of range.
    """
    name = config.get("name", "edm")
    if name not in PIPES:
        raise ValueError(f"there is no augmentation {name!r}; known: {', '.join(PIPES)}.")
    settings = registry.options(Settings, {**PIPES[name], **config}, "the augmentation")
    bad = [key for key in ("p", *LABELS) if getattr(settings, key) < 0]
    if bad:
        raise ValueError(f"augmentation: {bad[0]} is not negative; got {getattr(settings, bad[0])}.")
    if settings.margin not in ("batch", "full"):
        raise ValueError(f"augmentation: margin is 'batch' or 'full'; got {settings.margin!r}.")
    used = [name for name in LABELS if getattr(settings, name) > 0]
    if not used:
        raise ValueError(f"augmentation: no transform has a multiplier; give one to {', '.join(LABELS)}.")
    return Augment(
        draw=functools.partial(draw, used),
        apply=functools.partial(apply, settings, used),
        labels=sum(LABELS[name] for name in used),
    )


def draw(used: list[str], key: Key, size: int) -> Draws:
    """The random numbers of `size` samples."""
    draws = {}
    for name in used:
        own, shape = stream(key, name), (size, 2) if name in PAIRS else (size,)
        if name in CHOICES:
            w = jax.random.randint(stream(own, "w"), shape, 0, CHOICES[name])
        else:
            law = jax.random.uniform if name in UNIFORM else jax.random.normal
            w = law(stream(own, "w"), shape)
        draws[f"{name}_w"], draws[f"{name}_u"] = w, jax.random.uniform(stream(own, "u"), (size,))
        if name == "aniso":
            for number in ("r", "ru"):
                draws[f"aniso_{number}"] = jax.random.uniform(stream(own, number), (size,))
    return draws


def apply(settings: Settings, used: list[str], images: Array, draws: Draws) -> tuple[Array, Array]:
    """(changed images, labels) in the images' dtype: flips and pixels, then one warp, then colours.

    Raises: ValueError for images that are not square, or colours of neither 1 nor 3 channels.
    """
    size, height, width, channels = images.shape
    if height != width or width < 2:
        raise ValueError(f"augmentation takes square images, 2 pixels wide at least; got {height}x{width}.")
    if channels not in (1, 3) and any(name in COLOUR for name in used):
        raise ValueError(f"colours are changed in 1 or 3 channels; the images have {channels}.")
    numbers = {}
    for name in used:
        w = draws[f"{name}_w"]
        w = w if name in ("xflip", "yflip", "rotate_int", "lumaflip") else w.astype(images.dtype)
        fires = draws[f"{name}_u"] < getattr(settings, name) * settings.p
        if name in UNIFORM:
            w = 2 * w - 1
        if name in ("rotate_frac", "hue"):
            w = w * math.pi * getattr(settings, f"{name}_max")
        numbers[name] = jnp.where(expand(fires, w), w, 0)
    labels = []
    for name in (name for name in used if name in PIXEL):
        images, told = MOVES[name](settings, images, numbers[name])
        labels += told
    identity = jnp.broadcast_to(jnp.eye(3, dtype=images.dtype), (size, 3, 3))
    inverse = identity  # homogeneous map from an output pixel to the input pixel that it shows
    for name in (name for name in used if name in GEOMETRIC):
        more = (draws["aniso_r"], draws["aniso_ru"]) if name == "aniso" else ()
        matrix, told = MAPS[name](settings, numbers[name], width, *more)
        inverse, labels = warp.product(inverse, matrix), labels + told
    if any(name in GEOMETRIC for name in used):
        images = warp.warped(images, inverse, settings.margin)
    colours = [name for name in used if name in COLOUR]
    matrix = jnp.eye(4, dtype=images.dtype)
    for name in colours:
        one, told = COLOURS[name](settings, numbers[name])
        matrix, labels = warp.product(one, matrix), labels + told
    if colours:
        images = recoloured(images, jnp.broadcast_to(matrix, (size, 4, 4)))
    return images, jnp.stack([label.astype(images.dtype) for label in labels], axis=1)


# Whole pixels: (settings, images, w) -> (images, labels).


def _flipped(images: Array, which: Array, axis: int) -> Array:
    return jnp.where(expand(which, images), jnp.flip(images, axis), images)


def xflip(settings, images, w):
    """Mirrored left to right if w = 1."""
    return _flipped(images, w == 1, 2), [w]


def yflip(settings, images, w):
    """Mirrored top to bottom if w = 1."""
    return _flipped(images, w == 1, 1), [w]


def rotate_int(settings, images, w):
    """w quarter turns, as two flips and a transposition."""
    first, second = (w == 1) | (w == 2), (w == 2) | (w == 3)
    images = _flipped(_flipped(images, first, 2), second, 1)
    turned = jnp.where(expand(first != second, images), images.swapaxes(1, 2), images)
    return turned, [first, second]


def translate_int(settings, images, w):
    """By round(w S/8) pixels in x (rightwards) and y (upwards); what comes in is the reflection."""
    side = images.shape[1]
    reach = side * settings.translate_int_max
    shift = jnp.round(w * reach)
    whole, places = shift.astype(jnp.int32), jnp.arange(side)
    rows, columns = (warp.reflected(places + whole[:, 1:], side), warp.reflected(places - whole[:, :1], side))
    images = jnp.take_along_axis(images, rows[:, :, None, None], axis=1)
    images = jnp.take_along_axis(images, columns[:, None, :, None], axis=2)
    return images, list(shift.T / reach)


MOVES = {"xflip": xflip, "yflip": yflip, "rotate_int": rotate_int, "translate_int": translate_int}


# Geometry: (settings, w, side) -> (inverse map (B,3,3), labels). Pixels from the centre, x right, y down.


def scale(settings, w, side):
    """Larger by 2^(0.2 w)."""
    factor = 2 ** (settings.scale_std * w)
    return _scaling(1 / factor, 1 / factor), [w]


def rotate_frac(settings, w, side):
    """Turned by the angle w."""
    return _rotation(w), [jnp.cos(w) - 1, jnp.sin(w)]


def aniso(settings, w, side, r, r_coin):
    """Larger by 2^(0.2 w) in the direction r, and smaller across; half the time, r is zero."""
    angle = math.pi * (2 * r.astype(w.dtype) - 1)
    angle = jnp.where(r_coin < settings.aniso_rotate_prob, angle, 0)
    factor = 2 ** (settings.aniso_std * w)
    stretch = _scaling(1 / factor, factor)
    return warp.product(warp.product(_rotation(-angle), stretch), _rotation(angle)), [
        w * jnp.cos(angle),
        w * jnp.sin(angle),
    ]


def translate_frac(settings, w, side):
    """By w S/8 pixels in x and y."""
    reach = side * settings.translate_frac_std
    return _translation(-w[:, 0] * reach, -w[:, 1] * reach), [w[:, 0], w[:, 1]]


MAPS = {"scale": scale, "rotate_frac": rotate_frac, "aniso": aniso, "translate_frac": translate_frac}


def _matrix(rows) -> Array:
    """(B,n,n) from rows of (B,) values and numbers."""
    values = jnp.broadcast_arrays(*[jnp.asarray(v) for row in rows for v in row])
    dtype = jnp.result_type(*[v for row in rows for v in row if isinstance(v, jax.Array)])
    stacked = jnp.stack([v.astype(dtype) for v in values], axis=-1)
    return stacked.reshape(*stacked.shape[:-1], len(rows), len(rows))


def _scaling(x, y) -> Array:
    return _matrix([(x, 0, 0), (0, y, 0), (0, 0, 1)])


def _rotation(angle) -> Array:
    c, s = jnp.cos(angle), jnp.sin(angle)
    return _matrix([(c, -s, 0), (s, c, 0), (0, 0, 1)])


def _translation(x, y) -> Array:
    return _matrix([(1, 0, x), (0, 1, y), (0, 0, 1)])


# Colours: (settings, w) -> (homogeneous matrix (B,4,4), labels).


def brightness(settings, w):
    """0.2 w is added."""
    by = settings.brightness_std * w
    return _matrix([(1, 0, 0, by), (0, 1, 0, by), (0, 0, 1, by), (0, 0, 0, 1)]), [w]


def contrast(settings, w):
    """Times 2^(w / 2)."""
    by = 2 ** (settings.contrast_std * w)
    return _matrix([(by, 0, 0, 0), (0, by, 0, 0), (0, 0, by, 0), (0, 0, 0, 1)]), [w]


def lumaflip(settings, w):
    """Luma reversed if w = 1, chroma kept."""
    luma = jnp.asarray(np.outer(GREY, GREY), jnp.result_type(float))
    return jnp.eye(4) - 2 * luma * w[:, None, None], [w]


def hue(settings, w):
    """Turned by the angle w around luma's axis (Rodrigues' formula)."""
    x, y, z = GREY[:3]
    cross, outer = np.zeros((4, 4)), np.outer(GREY, GREY)
    cross[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
    corner = np.diag([0.0, 0.0, 0.0, 1.0])  # the homogeneous coordinate stays
    c, s = jnp.cos(w)[:, None, None], jnp.sin(w)[:, None, None]
    flat = np.eye(4) - outer - corner
    return (corner + outer).astype(w.dtype) + c * flat.astype(w.dtype) + s * cross.astype(w.dtype), [
        jnp.cos(w) - 1,
        jnp.sin(w),
    ]


def saturation(settings, w):
    """Chroma times 2^w."""
    outer = np.outer(GREY, GREY)
    by = 2 ** (settings.saturation_std * w)[:, None, None]
    return outer.astype(w.dtype) + (np.eye(4) - outer).astype(w.dtype) * by, [w]


COLOURS = {
    "brightness": brightness, "contrast": contrast, "lumaflip": lumaflip, "hue": hue, "saturation": saturation,
}  # fmt: skip


def recoloured(images: Array, matrix: Array) -> Array:
    """Homogeneous colours (r, g, b, 1) times (B,4,4); of one channel, the mean of what all three would get."""
    if images.shape[-1] == 3:
        turned = jnp.einsum("bhwc,bdc->bhwd", images, matrix[:, :3, :3], precision=warp.MATMUL)
        return turned + matrix[:, None, None, :3, 3]
    row = matrix[:, :3].mean(1)
    return images * expand(row[:, :3].sum(1), images) + expand(row[:, 3], images)
