"""What a sample set looks like beside its training images and its labels."""

import numpy as np
from scipy.spatial import distance


def nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) pixel L2 distance, in model units, of images (N,...) to the nearest of others (M,...).

    Against the training images it tells copies: compare its lower tail with held-out images'.

    Raises: ValueError if a set is empty or the shapes differ.
    """
    images, others = np.asarray(images), np.asarray(others)
    if images.shape[1:] != others.shape[1:] or not (len(images) and len(others)):
        raise ValueError(f"no nearest images between the shapes {images.shape} and {others.shape}.")
    images, others = (a.reshape(len(a), -1).astype(np.float64) for a in (images, others))
    tiles = np.array_split(images, -(-len(images) // 1024))
    return np.concatenate([distance.cdist(tile, others).min(1) for tile in tiles])


def shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """(K,) share of every class among labels (N,).

    Raises: ValueError if there are no labels or one is not from 0 to K - 1.
    """
    labels = np.asarray(labels)
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must run from 0 to {classes - 1} and not be empty; got {np.unique(labels)}."
        )
    return np.bincount(labels, minlength=classes) / len(labels)


def agreement(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that the classifier (logits (N,K)) gives the requested label (N,).

    1.0 is no proof of quality: blurred class means reach it.

    Raises: ValueError if the counts differ or there are none.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if len(logits) != len(labels) or not len(labels):
        raise ValueError(f"{len(logits)} images do not pair with {len(labels)} labels.")
    return float(np.mean(logits.argmax(1) == labels))
