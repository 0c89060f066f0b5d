"""Frechet distance between feature sets: streaming moments and the factor form, in host float64.

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

It is called FID when the features are those of the FID Inception network. It is biased upward at
small N: compare only at equal N, and state N.
"""

from collections.abc import Iterable, Mapping
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


def distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray,
             form: str = "factors") -> float:  # fmt: skip
    """FD of two Gaussians.

        factors   tr (S1 S2)^(1/2) = sum of the singular values of L1^T L2,   S_i = L_i L_i^T
        roots     tr (S1 S2)^(1/2) = sum of the roots of the eigenvalues of A S2 A,   A = S1^(1/2)

    The first is exact to 1e-13 for singular covariances as well. The second, which published numbers are
    near to, takes roots of rounding noise there: 1e-7 of the scale. They agree where S has full rank.

    Args:
      mean1, mean2: (D,). cov1, cov2: (D,D), symmetric.
      form: "factors" or "roots".
    Raises: ValueError if the dimensions differ, something is not finite, a covariance is not symmetric, or the
      result is negative beyond rounding.
    Source: Heusel et al. 2017 (arXiv:1706.08500), eq. 6.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape or cov1.shape != (len(mean1),) * 2:
        raise ValueError(
            f"FD compares means (D,) and covariances (D,D) of one D; got {mean1.shape} with "
            f"{cov1.shape} and {mean2.shape} with {cov2.shape}."
        )
    if form not in OVERLAPS:
        raise ValueError(f"no form {form!r} of FD; known: {', '.join(OVERLAPS)}.")
    for name, part in (("mean", mean1), ("covariance", cov1), ("mean", mean2), ("covariance", cov2)):
        if not np.isfinite(part).all():
            raise ValueError(f"FD got a {name} that is not finite.")
    for covariance in (cov1, cov2):
        if np.abs(covariance - covariance.T).max() > 1e-8 * np.abs(covariance).max():
            raise ValueError("FD got a covariance that is not symmetric.")
    return _clipped(mean1 - mean2, np.trace(cov1) + np.trace(cov2), OVERLAPS[form](cov1, cov2))


def of_features(left: np.ndarray, right: np.ndarray) -> float:
    """FD of two feature sets (N,D) and (M,D) without covariances: exact, at the cost of an (N,M) matrix.

        tr (S1 S2)^(1/2) = nuclear norm of (X1 - m1) (X2 - m2)^T / ((N - 1) (M - 1))^(1/2)

    Raises: ValueError for fewer than two features, other dimensions, or what is not finite.
    """
    left, right = checked(left), checked(right)
    if left.shape[1] != right.shape[1] or min(len(left), len(right)) < 2:
        raise ValueError(f"FD compares two features or more of one D; got {left.shape} and {right.shape}.")
    means = left.mean(0), right.mean(0)
    x, y = ((f - m) / np.sqrt(len(f) - 1) for f, m in zip((left, right), means, strict=True))
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return _clipped(means[0] - means[1], np.sum(x**2) + np.sum(y**2), overlap)


def _clipped(shift: np.ndarray, traces: float, overlap: float) -> float:
    """FD from its three terms: rounding below zero becomes zero."""
    value = np.sum(shift**2) + traces - 2 * overlap
    if not value >= -1e-6 * traces:
        raise ValueError(f"FD came out as {value}; the matrices are not covariances.")
    return max(float(value), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L (D,D) with L L^T = S; eigenvalues that are rounding noise are zero."""
    values, vectors = np.linalg.eigh(covariance)
    values[values <= len(values) * np.finfo(np.float64).eps * values.max()] = 0
    return vectors * np.sqrt(values)


def _by_factors(cov1: np.ndarray, cov2: np.ndarray) -> float:
    return np.linalg.svd(_factor(cov1).T @ _factor(cov2), compute_uv=False).sum()


def _by_roots(cov1: np.ndarray, cov2: np.ndarray) -> float:
    values, vectors = np.linalg.eigh(cov1)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0)).sum()


OVERLAPS = {"factors": _by_factors, "roots": _by_roots}  # tr (S1 S2)^(1/2)


def between(left: Moments, right: Moments) -> float:
    """FD of two feature sets, from their moments."""
    return distance(left.mean, covariance(left), right.mean, covariance(right))


class Statistics(NamedTuple):
    """Mean (D,) and unbiased covariance (D,D): all that FD knows of a reference."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(moments: Moments) -> Statistics:
    """Raises: ValueError for fewer than two features."""
    return Statistics(moments.mean, covariance(moments))


def masked(batch: Mapping[str, np.ndarray], key: str = "features") -> np.ndarray:
    """batch[key] (B,...), without the rows for which batch["mask"] (B,), if there is one, is false."""
    values = np.asarray(batch[key])
    return values[np.asarray(batch["mask"], bool)] if "mask" in batch else values


def metric(reference: Moments | Statistics) -> Metric:
    """FD to a reference as a streaming metric.

    `update(acc, frozen, batch)` reads batch["features"] (B,D) and, if there is one, batch["mask"]
    (B,), false for rows that only pad the batch. `compute` gives {"fd", "count"}.
    """
    known = statistics(reference) if isinstance(reference, Moments) else reference

    def init():
        return moments(np.zeros((0, len(known.mean))))

    def update(total, frozen, batch):
        del frozen
        return merge(total, moments(masked(batch)))

    def compute(total):
        return {"fd": distance(*statistics(total), *known), "count": float(total.count)}

    return Metric(init, update, compute)
