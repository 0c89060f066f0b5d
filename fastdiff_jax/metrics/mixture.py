"""Samples against a known Gaussian mixture: exact moments, exact MMD, modes (host float64).

A mixture is {"weights": (K,), "means": (K,d), "scales": (K,)}: isotropic modes.
"""

from collections.abc import Mapping

import numpy as np
from scipy.spatial.distance import cdist

from fastdiff_jax.metrics import frechet

Mixture = Mapping[str, np.ndarray]


def true_moments(mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d,d) of the mixture."""
    weights, means, scales = _definition(mixture)
    mean = weights @ means
    centred = means - mean
    within = weights @ scales**2 * np.eye(means.shape[1])
    return mean, within + (weights[:, None] * centred).T @ centred


def mmd2(samples: np.ndarray, mixture: Mixture, bandwidth: float | None = None) -> float:
    """Unbiased squared MMD between samples (N,d) and the mixture itself, with an RBF kernel.

        k(x, y) = exp(-|x - y|^2 / 2h^2)
        MMD^2 = mean_{i != j} k(x_i, x_j) - 2 mean_i E k(x_i, Y) + E k(Y, Y')

    The expectations are closed forms, so only the samples' own noise is left. May be negative: its
    mean is zero for samples of the mixture.

    Args:
      bandwidth: h; by default the root of the mixture's total variance.
    Raises: ValueError for fewer than two samples, or another dimension than the mixture's.
    """
    samples, (weights, means, scales) = _matching(samples, mixture), _definition(mixture)
    dim, count = means.shape[1], len(samples)
    square = np.trace(true_moments(mixture)[1]) if bandwidth is None else bandwidth**2

    def kernel(left, right, variance):
        """E k(x, y) over y ~ N(right, variance), for all pairs."""
        total = square + variance
        decay = np.exp(-cdist(left, right, "sqeuclidean") / (2 * total))
        return (square / total) ** (dim / 2) * decay

    tiles = np.array_split(samples, -(-count // 1024))
    own = (sum(kernel(tile, samples, 0.0).sum() for tile in tiles) - count) / (count * (count - 1))
    cross = np.mean(kernel(samples, means, scales**2) @ weights)
    both = weights @ kernel(means, means, scales[:, None] ** 2 + scales**2) @ weights
    return float(own - 2 * cross + both)


def mode_shares(samples: np.ndarray, mixture: Mixture, reach: float = 3.0) -> np.ndarray:
    """(K,) share of the samples in each mode: nearest in units of its scale, and within its ball.

    The ball's radius is scale (sqrt(d) + reach): nearly all of a Gaussian's mass in any dimension.
    What is in no ball counts nowhere.
    """
    samples, (_, means, scales) = _matching(samples, mixture), _definition(mixture)
    relative = cdist(samples, means) / scales
    nearest = relative.argmin(1)
    inside = relative.min(1) <= np.sqrt(means.shape[1]) + reach
    return np.bincount(nearest[inside], minlength=len(means)) / len(samples)


def compare(samples: np.ndarray, mixture: Mixture) -> dict[str, float]:
    """The lab's measures of samples (N,d).

    Returns:
      mean_error: |m - m*|.
      covariance_error: |S - S*|_F / |S*|_F.
      fd: Frechet distance to the true moments.
      mmd2_rbf: see `mmd2`.
      mode_recall: share of the modes that get at least a tenth of their weight.
      mode_error: total variation between mode shares and weights.
      in_modes: share of the samples in some mode.
    Raises: ValueError for fewer than two samples, another dimension than the mixture's, or values
      that are not finite.
    """
    weights, (mean, covariance) = _definition(mixture)[0], true_moments(mixture)
    found = frechet.moments(_matching(samples, mixture))
    spread, modes = frechet.covariance(found), mode_shares(samples, mixture)
    return {
        "mean_error": float(np.linalg.norm(found.mean - mean)),
        "covariance_error": float(np.linalg.norm(spread - covariance) / np.linalg.norm(covariance)),
        "fd": frechet.distance(found.mean, spread, mean, covariance),
        "mmd2_rbf": mmd2(samples, mixture),
        "mode_recall": float(np.mean(modes >= 0.1 * weights)),
        "mode_error": float((np.abs(modes - weights).sum() + 1 - modes.sum()) / 2),
        "in_modes": float(modes.sum()),
    }


def _definition(mixture: Mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (of sum one), means and scales as float64."""
    weights, means, scales = (
        np.asarray(mixture[key], np.float64) for key in ("weights", "means", "scales")
    )
    return weights / weights.sum(), means, scales


def _matching(samples: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Samples (N,d) as float64, checked against the mixture."""
    samples, dim = frechet.checked(samples), np.shape(mixture["means"])[1]
    if samples.shape[1] != dim or len(samples) < 2:
        raise ValueError(
            f"the mixture takes two or more samples of {dim} dimensions; got {samples.shape}."
        )
    return samples
