"""How samples are drawn for a measurement, and the record of it that lets two numbers be compared."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fastdiff_jax import rng
from fastdiff_jax.metrics.panels import Panel
from fastdiff_jax.runtime import generate
from fastdiff_jax.runtime.settings import MOST
from fastdiff_jax.types import Data

SEEDS, EDM = "seeds", "edm"
SAMPLINGS = {
    SEEDS: "images 0 to N-1 of every seed, labels in the data's shares; the mean is the result",
    EDM: "images r N to (r+1) N - 1 of every repeat r, uniform labels; the minimum is the result",
}


class Repeat(NamedTuple):
    """One set of samples: images number `first` to `first` + N - 1 of a seed."""

    seed: int
    first: int


def sampling(evaluation: ConfigDict) -> str:
    """The name of the protocol, an entry of SAMPLINGS."""
    return evaluation.get("protocol", "") or SEEDS


def check(evaluation: ConfigDict) -> None:
    """Raises ValueError for an unknown protocol, or repeats with more images than can be numbered."""
    name = sampling(evaluation)
    if name not in SAMPLINGS:
        raise ValueError(f"config.evaluation.protocol must be one of {', '.join(SAMPLINGS)}; got {name!r}.")
    last = (max(evaluation.seeds) + 1) * evaluation.num if name == EDM else 0
    if last > MOST:
        raise ValueError(
            f"config.evaluation.seeds number repeats under protocol edm: {last} images; at most {MOST}."
        )


def repeats(evaluation: ConfigDict) -> list[Repeat]:
    """The sets that are drawn.

    Under EDM's protocol every image has a generator of its own, and `seeds` number the sets: (0, 1, 2) of
    50,000 images are its seeds 0-49999, 50000-99999 and 100000-149999 (arXiv:2206.00364).
    """
    if sampling(evaluation) == EDM:
        return [Repeat(0, number * evaluation.num) for number in evaluation.seeds]
    return [Repeat(seed, 0) for seed in evaluation.seeds]


def seeds(evaluation: ConfigDict) -> list[int | str]:
    """The seeds as a card names them: those of the sets, or of each image, "0-49999"."""
    if sampling(evaluation) == EDM:
        return [f"{first}-{first + evaluation.num - 1}" for _, first in repeats(evaluation)]
    return list(evaluation.seeds)


def labels(evaluation: ConfigDict, data: Data, repeat: Repeat) -> np.ndarray:
    """(N,) labels of a set, by image: in the data's shares, or uniform from the image's own generator."""
    if sampling(evaluation) != EDM or not data.classes:
        return generate.labels_of(data, repeat.seed, evaluation.num)
    key = rng.stream(rng.root(repeat.seed, "sample"), "label")
    draw = lambda index: jax.random.randint(jax.random.fold_in(key, index), (), 0, data.classes)
    indices = np.arange(repeat.first, repeat.first + evaluation.num, dtype=np.int32)
    return np.asarray(jax.jit(jax.vmap(draw))(indices), np.int32)


def quantiser(data: Data) -> str:
    """How generated values become stored ones, in words."""
    return data.encode.__doc__.splitlines()[0]


def origin(data: Data) -> dict[str, Any]:
    """What identifies a data set in a card."""
    said = {"name": data.name, "fingerprint": data.fingerprint, "note": data.note}
    return said | {"shape": list(data.shape)}


def described(
    evaluation: ConfigDict, data: Data, panel: Panel, task: Mapping[str, Any] | str = "none"
) -> dict[str, Any]:
    """The record: all that must be equal for two numbers of one column to compare, see `compare`.

    Args:
      task: its settings, and what its conditions are made of.
    """
    whole = {"data": origin(data), "count": len(data.reference["label"])}
    return {
        "sampling": sampling(evaluation),
        "task": task,
        "samples": evaluation.num,
        "seeds": seeds(evaluation),
        "quantiser": quantiser(data),
        "data": origin(data),
        "features": {column: dict(about) for column, about in panel.nets.items()},
        "measures": {column: dict(about) for column, about in panel.measures.items()},
        "reference": {column: dict(panel.references.get(column, whole)) for column in panel.nets},
    }
