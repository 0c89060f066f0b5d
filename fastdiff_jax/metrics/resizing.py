"""Resizing as image metrics do it, by named protocols: an FID belongs to one of them.

Every resize is linear and separable, so it is one matrix for each axis: static shapes, two products.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Array

SIDE = 299  # of the images that Inception is given


def half_pixel(source: int, target: int) -> np.ndarray:
    """(target, source) weights of bilinear interpolation with half-pixel centres, edges clamped, no antialias.

        src = (i + 1/2) source / target - 1/2
    """
    return _bilinear(np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1), source)


def corner(source: int, target: int) -> np.ndarray:
    """(target, source) weights of TensorFlow 1's bilinear resize, no antialias: src = i source / target."""
    return _bilinear(np.arange(target) * (source / target), source)


def bicubic(source: int, target: int) -> np.ndarray:
    """(target, source) weights of Pillow's bicubic filter (a = -1/2), widened when it shrinks."""
    return _filtered(source, target, _cubic, 2.0)


def triangle(source: int, target: int) -> np.ndarray:
    """(target, source) weights of Pillow's bilinear filter, widened when it shrinks."""
    return _filtered(source, target, lambda x: np.maximum(1 - np.abs(x), 0), 1.0)


def resized(images: Array, height: int, width: int, weights: Callable[[int, int], np.ndarray]) -> Array:
    """Images (B,H,W,C) -> (B,height,width,C), in their own float dtype, width first.

    Args:
      weights: (source, target) -> (target, source), such as `half_pixel`.
    """
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    across, down = (
        jnp.asarray(weights(source, target), images.dtype)
        for source, target in zip(images.shape[2:0:-1], (width, height), strict=True)
    )
    return product("uh,bhvc->buvc", down, product("bhwc,vw->bhvc", images, across))


class Protocol(NamedTuple):
    """How images become an Inception network's input."""

    resize: Callable[[Array], Array]  # (B,H,W,3) in 0..255 -> (B,299,299,3) in the units that `scale` takes
    scale: Callable[[Array], Array]
    used_by: str


def fid(images: Array) -> Array:
    """Bilinear with half-pixel centres, on 0..1."""
    return resized(images / 255, SIDE, SIDE, half_pixel)


def tf1(images: Array) -> Array:
    """TensorFlow 1's bilinear, on 0..255."""
    return resized(images, SIDE, SIDE, corner)


def clean(images: Array) -> Array:
    """Pillow's bicubic on floats, clipped to 0..255 and not quantised."""
    return jnp.clip(resized(images, SIDE, SIDE, bicubic), 0, 255)


# The scalings differ by up to 0.008: they are part of the protocol.
PROTOCOLS = {
    "fid": Protocol(fid, lambda x: 2 * x - 1, "pytorch-fid"),
    "tf1": Protocol(tf1, lambda x: (x - 128) / 128, "EDM, SiD, StyleGAN, torch-fidelity"),
    "clean": Protocol(clean, lambda x: (x - 128) / 128, "clean-fid"),
}


def network_input(images: Array, protocol: str) -> Array:
    """Images (B,H,W,1 or 3) with values 0..255, of a float dtype -> what Inception reads, (B,299,299,3).

    Raises: ValueError for an unknown protocol or another number of channels.
    Source: the programs that `PROTOCOLS` names.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"no resize protocol {protocol!r}; known: {', '.join(PROTOCOLS)}.")
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"Inception reads images (B,H,W,3), or (B,H,W,1) as grey; got the shape {images.shape}."
        )
    if images.shape[-1] == 1:
        images = jnp.repeat(images, 3, axis=-1)
    return PROTOCOLS[protocol].scale(PROTOCOLS[protocol].resize(images))


def _bilinear(places, source):
    """Weights of the two neighbours of every place; the last one has only itself."""
    low = np.floor(places).astype(int)
    high, part = np.minimum(low + 1, source - 1), places - low
    made, rows = np.zeros((len(places), source)), np.arange(len(places))
    np.add.at(made, (rows, low), 1 - part)
    np.add.at(made, (rows, high), part)
    return made


def _cubic(x, a=-0.5):
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _filtered(source, target, kernel, reach):
    """Rows of kernel((j + 1/2 - centre) / widening), normalised, over the taps that Pillow takes."""
    scale = source / target
    widening = max(scale, 1.0)
    centres, taps = (np.arange(target) + 0.5) * scale, np.arange(source)
    first = np.maximum((centres - reach * widening + 0.5).astype(int), 0)
    last = np.minimum((centres + reach * widening + 0.5).astype(int), source)
    made = kernel((taps + 0.5 - centres[:, None]) / widening)
    made = np.where((taps >= first[:, None]) & (taps < last[:, None]), made, 0.0)
    return made / made.sum(1, keepdims=True)
