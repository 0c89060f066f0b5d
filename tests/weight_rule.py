"""Weights that follow from their names: what networks are tested with whose published weights are not here."""

from collections.abc import Mapping
from zlib import crc32

import numpy as np


def drawn(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One weight in torch's layout, float32."""
    random = np.random.RandomState((crc32(name.encode("ascii")) ^ seed) & 0xFFFFFFFF)
    z = random.standard_normal(int(np.prod(shape))).reshape(shape)
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        z = np.zeros(shape)
    elif name.startswith("lin"):
        z = 0.1 * np.abs(z)
    elif len(shape) == 4:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        z = z * np.sqrt(1 / shape[1])
    elif leaf == "running_var":
        z = np.exp(0.2 * z)
    elif leaf == "weight":
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z  # biases and running means
    return z.astype(np.float32)


def state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """All weights of a network by name."""
    return {name: drawn(name, shape, seed) for name, shape in shapes.items()}
