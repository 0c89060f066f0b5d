"""The data of weights from elsewhere: only the shape of the images and the number of classes are known."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.data import stored
from fastdiff_jax.types import Data

NAME = "unseen"


class Settings(NamedTuple):
    """Options of this data set."""

    shape: Sequence[int]  # (H,W,C)
    classes: int = 0


def build(config) -> Data:
    """No image at all, and as the reference every class once, so that samples have all of them.

    Raises: ValueError for unknown settings, or sizes that no images have.
    """
    settings = registry.options(Settings, config, f"data {NAME}")
    shape, classes = tuple(settings.shape), settings.classes
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"data {NAME}: shape is (H,W,C), positive; got {shape}.")
    if not isinstance(classes, int) or classes < 0:
        raise ValueError(f"data {NAME}: classes is a number from 0; got {classes!r}.")
    reference = {"image": np.zeros((0, *shape), np.uint8), "label": np.arange(max(classes, 1), dtype=np.int32)}
    return stored.outline(NAME, shape, classes)._replace(reference=reference)


outline = build  # there is nothing more to know


def check(name: str, data: str) -> None:
    """Raises ValueError if the run `name` would have to train or measure on such data."""
    if data == NAME:
        raise ValueError(
            f"{name} was converted without the data it was trained on, so it is neither trained nor measured: "
            "sample from it (--mode sample), name it as config.teacher, or convert it with --data."
        )
