"""Distances between two sets of samples, differentiable in both."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Array


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
