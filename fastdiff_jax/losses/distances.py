"""Distances of images from images, one each, and of sets from sets; differentiable in both."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.types import Array

Distance = Callable[[Array, Array], Array]  # (x (B,...), y (B,...)) -> (B,)


def _mean(values):
    return values.reshape(len(values), -1).mean(1)


def l2() -> Distance:
    """Mean squared difference."""
    return lambda x, y: _mean((x - y) ** 2)


def l1() -> Distance:
    """Mean absolute difference."""
    return lambda x, y: _mean(jnp.abs(x - y))


def pseudo_huber(c: float | None = None) -> Distance:
    """sqrt(|x - y|^2 + c^2) - c, of the Euclidean length of d values: quadratic below c, linear above.

    Args:
      c: positive; None: 0.00054 sqrt(d).
    Raises: ValueError for another c.
    Source: Song and Dhariwal 2023 (arXiv:2310.14189), eq. 8 and section 3.3.
    """
    if c is not None and not c > 0:
        raise ValueError(f"the pseudo-Huber distance bends at a positive c; got {c}.")

    def distance(x, y):
        bend = 0.00054 * x[0].size ** 0.5 if c is None else c
        square = jnp.square(x - y).reshape(len(x), -1).sum(1)
        return square / (jnp.sqrt(square + bend**2) + bend)  # the difference of roots cancels

    return distance


DISTANCES = {"l2": l2, "l1": l1, "pseudo_huber": pseudo_huber}


def build(config: Mapping) -> Distance:
    """The distance that `config["name"]` asks for; its other entries are arguments.

    Raises: ValueError naming the known ones.
    """
    return registry.choose(DISTANCES, config, "distance")


def centre(images: Array, size: int) -> Array:
    """The middle (B,size,size,C) of images (B,H,W,C), rounded up and left; shorter sides stay whole."""
    height, width = images.shape[1:3]
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    return images[:, top : top + size, left : left + size]


def decoded(distance: Distance, decode: Callable[[Array], Array], size: int = 64) -> Distance:
    """The distance of latents' decoded middles, for metrics that know images only, such as LPIPS.

        distance(clip(decode(centre(x))), clip(decode(centre(y)))),    clip to [-1, 1]

    Gradients pass through the decoder, but not where an image leaves [-1, 1].

    Args:
      decode: latents (B,h,w,C) -> images (B,H,W,3).
      size: of the middle, in latents.
    Source: Chadebec et al. 2024 (arXiv:2406.02347), the authors' code.
    """
    return lambda x, y: distance(*(jnp.clip(decode(centre(z, size)), -1.0, 1.0) for z in (x, y)))


def kernel(a: Array, b: Array) -> Array:
    """(N,M) values (a.b / D + 1)^3 between the rows of a (N,D) and b (M,D)."""
    # Full precision: the distance is a small difference of large means.
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return (products / a.shape[1] + 1) ** 3


def kernel_distance(x: Array, y: Array) -> Array:
    """Unbiased squared maximum mean discrepancy of features x (N,D) and y (M,D), a scalar.

        mean_{i!=j} k(x_i, x_j) + mean_{i!=j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)

    Zero on average for two sets of one distribution, so single values may be negative. With Inception's
    features it is KID.

    Raises: ValueError for sets of one sample, of different features or, unless traced, not finite.
    Source: Gretton et al. 2012 (JMLR 13), eq. 3; Bińkowski et al. 2018 (arXiv:1801.01401), section 4.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"a kernel distance is between features (N,D) and (M,D); got {x.shape} and {y.shape}.")
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"a kernel distance needs two samples or more on either side; got {len(x)} and {len(y)}."
        )
    for name, values in (("first", x), ("second", y)):
        _check_finite(name, values)
    return _between_different(x) + _between_different(y) - 2 * kernel(x, y).mean()


def _between_different(x):
    """Mean of the kernel over pairs of different rows."""
    values = kernel(x, x)
    return (values.sum() - jnp.trace(values)) / (len(x) * (len(x) - 1))


def _check_finite(name, values):
    try:
        known = np.asarray(values)
    except jax.errors.TracerArrayConversionError:
        return  # in a compiled step the training loop watches the loss
    if not np.isfinite(known).all():
        count = int((~np.isfinite(known)).any(1).sum())
        raise ValueError(f"a kernel distance needs finite features; {count} rows of the {name} set are not.")
