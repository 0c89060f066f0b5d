"""Frechet distance between feature sets: streaming moments and the factor form, in host float64.

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

It is called FID when the features are those of the FID Inception network. It is biased upward at
small N: compare only at equal N, and state N.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fastdiff_jax.types import Metric


class Moments(NamedTuple):
    """Count, mean (D,) and scatter sum (f - mean)(f - mean)^T (D,D) of features, float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray


def checked(features: np.ndarray) -> np.ndarray:
    """Features (N,D) as float64.

    Raises: ValueError if they are not a matrix of finite numbers, naming the first bad row.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"features must be (N, D); got the shape {features.shape}.")
    good = np.isfinite(features).all(1)
    if not good.all():
        raise ValueError(f"features must be finite; row {int(np.argmin(good))} is not.")
    return features


def moments(features: np.ndarray) -> Moments:
    """The moments of one batch (N,D); an empty batch has zero moments."""
    features = checked(features)
    mean = features.mean(0) if len(features) else np.zeros(features.shape[1])
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def merge(left: Moments, right: Moments) -> Moments:
    """The moments of both sets together; accurate even if |mean| is far above the deviation.

        d = m_r - m_l,   Q = Q_l + Q_r + d d^T n_l n_r / n,   m = m_l + d n_r / n

    Raises: ValueError if the dimensions differ.
    """
    if left.mean.shape != right.mean.shape:
        raise ValueError(
            f"features of {len(left.mean)} and {len(right.mean)} dimensions do not merge."
        )
    if not (left.count and right.count):
        return left if left.count else right
    count, delta = left.count + right.count, right.mean - left.mean
    scatter = (
        left.scatter + right.scatter + np.outer(delta, delta) * (left.count * right.count / count)
    )
    return Moments(count, left.mean + delta * (right.count / count), scatter)


def gathered(batches: Iterable[np.ndarray]) -> Moments:
    """The moments of features that come in batches (n,D).

    Raises: ValueError if there are none.
    """
    total = None
    for batch in batches:
        total = moments(batch) if total is None else merge(total, moments(batch))
    if total is None:
        raise ValueError("features of an empty set have no moments.")
    return total


def covariance(moments: Moments) -> np.ndarray:
    """Unbiased covariance (D,D), scatter / (N - 1).

    Raises: ValueError for fewer than two features.
    """
    if moments.count < 2:
        raise ValueError(f"a covariance needs two features or more; got {moments.count}.")
    return moments.scatter / (moments.count - 1)


def distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """FD of two Gaussians, exact to 1e-13 for singular covariances as well.

        tr (S1 S2)^(1/2) = sum of the singular values of L1^T L2,   S_i = L_i L_i^T

    The usual form, roots of the product's eigenvalues, makes 1e-7 of rounding where S is singular.

    Args: means (D,) and symmetric covariances (D,D).
    Raises: ValueError if the dimensions differ, a covariance is not symmetric, or the result is
      negative beyond rounding.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape or cov1.shape != (len(mean1),) * 2:
        raise ValueError(
            f"FD compares means (D,) and covariances (D,D) of one D; got {mean1.shape} with "
            f"{cov1.shape} and {mean2.shape} with {cov2.shape}."
        )
    traces = np.trace(cov1) + np.trace(cov2)
    overlap = np.linalg.svd(_factor(cov1).T @ _factor(cov2), compute_uv=False).sum()
    value = np.sum((mean1 - mean2) ** 2) + traces - 2 * overlap
    if not value >= -1e-6 * traces:
        raise ValueError(f"FD came out as {value}; the matrices are not covariances.")
    return max(float(value), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L (D,D) with L L^T = S; eigenvalues that are rounding noise are zero."""
    if np.abs(covariance - covariance.T).max() > 1e-8 * np.abs(covariance).max():
        raise ValueError("FD got a covariance that is not symmetric.")
    values, vectors = np.linalg.eigh(covariance)
    values[values <= len(values) * np.finfo(np.float64).eps * values.max()] = 0
    return vectors * np.sqrt(values)


def between(left: Moments, right: Moments) -> float:
    """FD of two feature sets, from their moments."""
    return distance(left.mean, covariance(left), right.mean, covariance(right))


def metric(reference: Moments) -> Metric:
    """FD to a reference as a streaming metric.

    `update(acc, frozen, batch)` reads batch["features"] (B,D) and, if there is one, batch["mask"]
    (B,), false for rows that only pad the batch. `compute` gives {"fd", "count"}.
    """

    def init():
        return moments(np.zeros((0, len(reference.mean))))

    def update(total, frozen, batch):
        del frozen
        features = np.asarray(batch["features"])
        if "mask" in batch:
            features = features[np.asarray(batch["mask"], bool)]
        return merge(total, moments(features))

    def compute(total):
        return {"fd": between(total, reference), "count": float(total.count)}

    return Metric(init, update, compute)
