"""Precision, recall, density and coverage from nearest-neighbour balls, in host float64."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastdiff_jax.metrics.frechet import checked, masked
from fastdiff_jax.types import Metric

TILE = 2**23  # entries of the distance matrix at a time: 64 MB, whatever the sets' sizes
NEAR = 1e-9  # relative gap under which a product-form distance does not decide a comparison


def precision_recall(
    real: np.ndarray, fake: np.ndarray, *, k: int = 3, strict: bool = False, radii: np.ndarray | None = None
) -> dict[str, float]:
    """How much of each set lies in the k-nearest-neighbour balls of the other.

        precision = share of fake points in some real ball
        recall    = share of real points in some fake ball
        density   = mean number of real balls that a fake point is in, / k; may exceed 1
        coverage  = share of real balls that hold a fake point

    A ball reaches to its centre's k-th nearest OTHER point. Distances are Euclidean.

    Args:
      real, fake: (N,D) and (M,D), finite.
      strict: inside means d < r (package prdc, and the SFD repository) rather than d <= r (the
        paper, StyleGAN, torch-fidelity). They differ at ties only.
      radii: (N,) `squared_radii` of `real` less its first point, if known: of large sets they take minutes.
    Returns: {"precision", "recall", "density", "coverage"}.
    Raises: ValueError if k is not below the size of both sets, or the dimensions differ.
    Source: arXiv:1904.06991 (k = 3); density and coverage: arXiv:2002.09797 (k = 5, strict).
    """
    real, fake = checked(real), checked(fake)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} dimensions, fake ones {fake.shape[1]}."
        )
    # A product loses what a common offset dwarfs; shifting by a point keeps copies equal.
    real, fake = real - real[:1], fake - real[:1]
    real_radii, fake_radii = squared_radii(real, k) if radii is None else radii, squared_radii(fake, k)
    inside = np.less if strict else np.less_equal
    in_balls, covered, recalled = np.zeros(len(fake), np.int64), 0, 0
    for rows, squares, scale in _tiles(real, fake):
        for bounds in (real_radii[rows, None], fake_radii[None]):
            i, j = np.nonzero(np.abs(squares - bounds) <= NEAR * scale)
            squares[i, j] = np.sum((real[rows][i] - fake[j]) ** 2, 1)
        in_real = inside(squares, real_radii[rows, None])
        in_balls += in_real.sum(0)
        covered += np.count_nonzero(in_real.any(1))
        recalled += np.count_nonzero(inside(squares, fake_radii[None]).any(1))
    return {
        "precision": float(np.mean(in_balls > 0)),
        "recall": float(recalled / len(real)),
        "density": float(in_balls.sum() / (k * len(fake))),
        "coverage": float(covered / len(real)),
    }


class Settings(NamedTuple):
    """Whose rule: precision and recall are published at k = 3, not strict, the others at 5, strict."""

    k: int = 3
    strict: bool = False
    most: int = 0  # real features, a fixed random choice; 0: all


USUAL = Settings()
COLUMNS = ("precision", "recall", "density", "coverage")


def metric(real: np.ndarray, settings: Settings = USUAL) -> Metric:
    """All four against real features (N,D) as a metric of feature batches, see `frechet.metric`.

    The real set's balls are found once, however many sets are measured. A ball of the fake set depends on all
    of it, so the features are kept, as float32.

    Raises: ValueError if `most` is negative.
    """
    if settings.most < 0:
        raise ValueError(f"precision and recall: most counts real features, 0 is all; got {settings.most}.")
    if 0 < settings.most < len(real):
        real = real[np.sort(np.random.RandomState(0).permutation(len(real))[: settings.most])]
    real = np.asarray(real, np.float32)

    @functools.cache
    def radii():
        exact = checked(real)
        return squared_radii(exact - exact[:1], settings.k)

    def update(kept, frozen, batch):
        del frozen
        return [*kept, np.asarray(masked(batch), np.float32)]

    def compute(kept):
        fake = np.concatenate(kept or [real[:0]])
        return precision_recall(real, fake, k=settings.k, strict=settings.strict, radii=radii())

    return Metric(list, update, compute)


def squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    """(N,) squared distance of every row (N,D) to its k-th nearest other row.

    Raises: ValueError if k is not from 1 to N - 1.
    """
    if not 1 <= k < len(features):
        raise ValueError(
            f"{len(features)} points have no {k}-th neighbours; k must be from 1 to N - 1."
        )
    radii = np.empty(len(features))
    for rows, squares, _ in _tiles(features, features):
        # The point itself counts as neighbour 0, whatever the rounding of its distance.
        neighbours = np.argpartition(squares, k, axis=1)[:, k]
        radii[rows] = np.sum((features[rows] - features[neighbours]) ** 2, 1)
    return radii


def _tiles(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(rows, squared distances, |x|^2 + |y|^2), row tile by row tile.

    The form |x|^2 + |y|^2 - 2 x.y is a matrix product, but blurs ties and the distance of a point
    to its copy: what it does not decide, callers decide by plain differences.
    """
    own, others = np.sum(left**2, 1), np.sum(right**2, 1)
    height = max(1, TILE // len(right))
    for start in range(0, len(left), height):
        rows = slice(start, start + height)
        scale = own[rows, None] + others
        yield rows, scale - 2 * (left[rows] @ right.T), scale
