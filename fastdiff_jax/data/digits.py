"""scikit-learn's embedded digits: 1797 real 8x8 gray images in 17 levels, nothing to download."""

from typing import NamedTuple

import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.data import stored
from fastdiff_jax.types import Data

LEVELS = 16  # values are 0..16
COUNT = 1797


class Settings(NamedTuple):
    """Options of this data set."""

    held_out: int = 360  # images that nothing is trained on


def encode(images: np.ndarray) -> np.ndarray:
    """(N,...) model units -> uint8 round(v 255 / 16), v = clip(round(8 (x + 1)), 0, 16).

    The 8-bit rule would give generated images 256 levels where the real ones have 17.

    Raises: ValueError naming the first image with a NaN.
    """
    levels = np.clip(np.rint((stored.without_nan(images) + 1) * (LEVELS / 2)), 0, LEVELS)
    return np.rint(levels * (255 / LEVELS)).astype(np.uint8)


def decode(values: np.ndarray) -> np.ndarray:
    """uint8 -> float32 v / 8 - 1, with v the nearest of the 17 levels."""
    levels = np.rint(np.asarray(values, np.float32) * np.float32(LEVELS / 255))
    return levels / np.float32(LEVELS / 2) - np.float32(1)


def build(config) -> Data:
    """Trains on 1437 images of a fixed permutation (RandomState(0)); the reference is all 1797.

    `reference["split"]` is 0 for training images and 1 for held-out ones.

    Raises: ValueError for unknown settings, or if the held-out images leave none to train on.
    """
    settings = registry.options(Settings, config, "data digits")
    if not 0 <= settings.held_out < COUNT:
        raise ValueError(
            f"digits: held_out must be from 0 to {COUNT - 1}; got {settings.held_out}."
        )
    from sklearn import datasets  # late: a second of imports that no other data set needs

    source = datasets.load_digits()
    images = np.rint(source.images[..., None] * (255 / LEVELS)).astype(np.uint8)
    labels = source.target.astype(np.int32)
    order = np.random.RandomState(0).permutation(COUNT)
    train, held_out = np.split(order, [COUNT - settings.held_out])
    split = np.zeros(COUNT, np.int32)
    split[held_out] = 1
    return Data(
        name="digits",
        train=stored.Rows(images[train], labels[train]),
        reference={"image": images, "label": labels, "split": split},
        classes=10,
        encode=encode,
        decode=decode,
        fingerprint=stored.fingerprint(images, labels, split),
        shape=images.shape[1:],
    )


def outline(config) -> Data:
    """The shape and classes alone; nothing is read."""
    registry.options(Settings, config, "data digits")
    return stored.outline("digits", (8, 8, 1), 10)
