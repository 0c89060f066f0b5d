"""How close made images are to the ones that their conditions came from, image by image."""

from collections.abc import Callable

import numpy as np

RANGE = 2.0  # of images in [-1, 1]
MOST = 100.0  # dB, of images without any error as well: an infinite ratio is no JSON, and plots nowhere


def psnr(made: np.ndarray, originals: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of images (N,H,W,C) in [-1, 1], over all that `where` marks together.

        10 log10(4 / mean (made - original)^2), at most MOST

    One mean over the whole set, as small masks have images without any error, whose own ratio is infinite.

    Args:
      where: (N,H,W,1), nonzero where pixels count; None: everywhere.
    Raises: ValueError if no pixel counts, or the shapes differ.
    """
    made, originals = np.asarray(made, np.float64), np.asarray(originals, np.float64)
    if made.shape != originals.shape:
        raise ValueError(f"images {made.shape} do not pair with {originals.shape}.")
    where = np.broadcast_to(True if where is None else np.asarray(where) > 0, made.shape)
    if not where.any():
        raise ValueError("no pixel is marked, so there is no error to speak of.")
    with np.errstate(divide="ignore"):
        ratio = 10 * np.log10(RANGE**2 / np.mean((made - originals)[where] ** 2))
    return float(min(ratio, MOST))


def distance(features: np.ndarray, others: np.ndarray) -> float:
    """Mean Euclidean distance of features (N,D) from others (N,D), row by row."""
    return float(np.linalg.norm(_same(features, others), axis=1).mean())


def feature_distance(
    features: Callable[[np.ndarray], np.ndarray] | None, made: np.ndarray, originals: np.ndarray
) -> dict[str, float]:
    """The column feature_distance, `distance` in a net's features; none without a net."""
    return {} if features is None else {"feature_distance": distance(features(made), features(originals))}


def similarity(features: np.ndarray, others: np.ndarray) -> float:
    """Mean cosine of the angle between features (N,D) and others (N,D), row by row; zero for a row of zeros."""
    _same(features, others)
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(others, axis=1)
    products = np.sum(np.asarray(features, np.float64) * others, axis=1)
    return float(np.mean(products / np.where(lengths > 0, lengths, 1.0)))


def f1(found: np.ndarray, wanted: np.ndarray) -> float:
    """2 |found and wanted| / (|found| + |wanted|) of two masks of one shape; one where both are empty."""
    found, wanted = np.asarray(found) > 0, np.asarray(wanted) > 0
    if found.shape != wanted.shape:
        raise ValueError(f"masks {found.shape} do not pair with {wanted.shape}.")
    marked = found.sum() + wanted.sum()
    return float(2 * (found & wanted).sum() / marked) if marked else 1.0


def others(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Orders (N,) that give an image another's place: "class", the next one of its label, "shuffled", of all.

    An image that is alone in its class keeps its own.
    """
    turned = np.arange(len(labels))
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        turned[members] = np.roll(members, -1)
    return {"class": turned, "shuffled": np.roll(np.arange(len(labels)), -1)}


def _same(features, others):
    if features.shape != others.shape:
        raise ValueError(f"features {features.shape} do not pair with {others.shape}.")
    return np.asarray(features, np.float64) - others
