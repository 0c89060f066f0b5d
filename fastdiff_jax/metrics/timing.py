"""Wall time of sampling, per image."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Milliseconds per image."""

    best: float
    median: float
    first: float  # the first call, with compilation


def per_image(
    generate: Callable[..., Any], *arguments: Any, images: int, repeats: int = 5
) -> Timing:
    """Times generate(*arguments), which makes `images` images a call, until its results are there.

    The first call compiles and is reported apart; the best of the repeats is what the machine can
    do, the median what it did.

    Raises: ValueError if repeats or images is not positive.
    """
    if repeats < 1 or images < 1:
        raise ValueError(f"timing needs positive counts; got {repeats} repeats of {images} images.")
    seconds = []
    for _ in range(1 + repeats):
        begun = time.perf_counter()
        jax.block_until_ready(generate(*arguments))
        seconds.append(time.perf_counter() - begun)
    first, *rest = 1e3 * np.array(seconds) / images
    return Timing(float(np.min(rest)), float(np.median(rest)), float(first))
