"""Kernel Inception distance: unbiased squared MMD with a cubic kernel, in host float64."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastdiff_jax.metrics.frechet import checked, masked
from fastdiff_jax.types import Metric

SEED = 2020  # torch-fidelity's, of the subsets


class Settings(NamedTuple):
    """Which subsets the two sets are compared by."""

    subsets: int = 100
    size: int = 1000
    seed: int = SEED


USUAL = Settings()


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (x.y / D + 1)^3, (N,D) and (M,D) -> (N,M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(x: np.ndarray, y: np.ndarray, unbiased: bool = True) -> float:
    """Squared maximum mean discrepancy of two feature sets under `kernel`.

        unbiased   sum_{i != j} k(x_i, x_j) / (n (n-1)) + the same of y - 2 mean_ij k(x_i, y_j)
        biased     mean_ij k(x_i, x_j) + the same of y - 2 mean_ij k(x_i, y_j)

    The unbiased one may be negative and is not clipped; its cross term keeps i = j.

    Args: x (n,D), y (m,D), finite.
    Raises: ValueError if the dimensions differ, or for fewer than two rows.
    Source: Binkowski et al. 2018 (arXiv:1801.01401).
    """
    x, y = _pair(x, y)
    within = 0.0
    for one in (x, y):
        gram, n = kernel(one, one), len(one)
        within += (gram.sum() - np.trace(gram)) / (n * (n - 1)) if unbiased else gram.mean()
    return float(within - 2 * kernel(x, y).mean())


def draws(num_x: int, num_y: int, settings: Settings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of every subset, (size,) of x and of y, without replacement within one.

    Drawn as torch-fidelity does: one generator, x and y in turn.

    Raises: ValueError if a set is smaller than a subset.
    """
    if not 2 <= settings.size <= min(num_x, num_y) or settings.subsets < 1:
        raise ValueError(
            f"KID asks for {settings.subsets} subsets of {settings.size} from sets of {num_x} and {num_y}; use "
            "a size from 2 to that of the smaller set."
        )
    random = np.random.RandomState(settings.seed)
    for _ in range(settings.subsets):
        yield tuple(random.choice(num, settings.size, replace=False) for num in (num_x, num_y))


def by_subset(x: np.ndarray, y: np.ndarray, settings: Settings = USUAL) -> np.ndarray:
    """(subsets,) unbiased MMD^2. KID is their mean, often quoted times 1000, its spread their deviation.

    Raises: ValueError as `mmd2` and `draws`.
    """
    x, y = _pair(x, y)
    return np.array([mmd2(x[i], y[j]) for i, j in draws(len(x), len(y), settings)])


def metric(real: np.ndarray, settings: Settings = USUAL) -> Metric:
    """KID to real features (M,D) as a metric of feature batches, see `frechet.metric`.

    The subsets are of the whole set, so the features are kept, as float32. `compute` gives the subsets'
    mean and population standard deviation, {"kid", "kid_std"}.
    """
    real = np.asarray(real, np.float32)

    def update(kept, frozen, batch):
        del frozen
        return [*kept, np.asarray(masked(batch), np.float32)]

    def compute(kept):
        found = by_subset(np.concatenate(kept or [real[:0]]), real, settings)
        return {"kid": float(found.mean()), "kid_std": float(found.std())}

    return Metric(list, update, compute)


def _pair(x, y):
    x, y = checked(x), checked(y)
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"KID compares two rows or more of one dimension; got {x.shape} and {y.shape}.")
    return x, y
