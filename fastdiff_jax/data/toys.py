"""Gaussian mixtures whose density, score and moments are known: the data of the exact lab."""

from typing import NamedTuple

import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.data import stored
from fastdiff_jax.types import Data


class Settings(NamedTuple):
    """A mixture of equally likely isotropic Gaussians, and how many points are drawn from it."""

    modes: int = 8
    dim: int = 2
    radius: float = 1.0  # distance of the means from the origin
    scale: float = 0.1  # standard deviation of every mode
    seed: int = 0
    num: int = 16384
    labels: bool = False  # whether models are told which mode a point comes from


def mixture(settings: Settings) -> dict[str, np.ndarray]:
    """The mixture itself, float32: {"weights": (K,), "means": (K,d), "scales": (K,)}.

    In two dimensions the means stand evenly on a circle; in others their directions are random.
    """
    modes, dim = settings.modes, settings.dim
    if dim == 2:
        angles = 2 * np.pi * np.arange(modes) / modes
        directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    else:
        directions = np.random.default_rng((settings.seed, 0)).standard_normal((modes, dim))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return {
        "weights": np.full(modes, 1 / modes, np.float32),
        "means": np.float32(settings.radius * directions),
        "scales": np.full(modes, settings.scale, np.float32),
    }


def points(definition: dict[str, np.ndarray], num: int, generator: np.random.Generator):
    """`num` points (N,d) of a mixture, and the modes (N,) that they came from."""
    weights, means = (definition[key].astype(np.float64) for key in ("weights", "means"))
    modes = generator.choice(len(weights), num, p=weights / weights.sum())
    noise = generator.standard_normal((num, means.shape[1]))
    return means[modes] + definition["scales"][modes, None] * noise, modes


def build(config) -> Data:
    """Points (d,) stored as float32; a point's label is the mode it came from, which models are told if asked.

    `exact` is the mixture: the analytic teacher's weights, and what samples are measured against.

    Raises: ValueError for unknown settings or values out of range.
    """
    settings = registry.options(Settings, config, "data toys")
    for name in ("modes", "dim", "radius", "scale", "num"):
        if not getattr(settings, name) > 0:
            raise ValueError(f"data toys: {name} must be positive; got {getattr(settings, name)}.")
    definition = mixture(settings)
    values, modes = points(definition, settings.num, np.random.default_rng((settings.seed, 1)))
    values, modes = values.astype(np.float32), modes.astype(np.int32)
    return Data(
        name="toys",
        train=stored.Rows(values, modes),
        reference={"image": values, "label": modes, "split": np.zeros(settings.num, np.int32)},
        classes=settings.modes if settings.labels else 0,
        encode=stored.without_nan,
        decode=np.asarray,
        fingerprint=stored.fingerprint(values, modes),
        shape=(settings.dim,),
        exact=definition,
    )


def outline(config) -> Data:
    """Points cost nothing to make, so this is the data set itself."""
    return build(config)
