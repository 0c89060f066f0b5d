"""What conditional images are made from in evaluations: held-out images, one for every image number."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fastdiff_jax import rng
from fastdiff_jax.metrics import features, panels
from fastdiff_jax.runtime import generate
from fastdiff_jax.runtime.assemble import data_set
from fastdiff_jax.types import Data, Draws, Task

PICTURED = 16  # images of a task that a picture shows


class Source(NamedTuple):
    """The images that conditions are made of."""

    images: np.ndarray  # (M,...) stored
    labels: np.ndarray  # (M,)
    said: str  # in words


class Given(NamedTuple):
    """What a set of images was made from, in their order."""

    images: np.ndarray  # (N,...) model units
    labels: np.ndarray  # (N,)
    draws: Draws  # of the task

    def head(self, num: int) -> "Given":
        """The first images."""
        return jax.tree.map(lambda leaf: leaf[:num], self)

    def batch(self) -> dict[str, np.ndarray]:
        """As a task takes it."""
        return {"image": self.images, "label": self.labels}


def held_out(config: ConfigDict, data: Data) -> Source | None:
    """Images that nothing was trained on: of `evaluation.split`, or what the reference holds back; or none."""
    if split := config.evaluation.get("split", ""):
        other = data_set(ConfigDict({"data": config.data.to_dict() | {"split": split}})).reference
        return Source(other["image"], other["label"], f"the images of the {split} split")
    chosen = data.reference["split"] == 1
    if not chosen.any():
        return None
    held_back = data.reference["image"][chosen], data.reference["label"][chosen]
    return Source(*held_back, f"the {chosen.sum()} held-out images")


def source(config: ConfigDict, data: Data) -> Source:
    """`held_out`, or where there are none the reference images."""
    if (found := held_out(config, data)) is not None:
        return found
    everything = data.reference["image"], data.reference["label"]
    return Source(*everything, "reference images, which were trained on")


def given(
    task: Task, source: Source, data: Data, seed: int, num: int, first: int = 0,
    labels: np.ndarray | None = None,
) -> Given:  # fmt: skip
    """What images number first..first+num-1 of a seed are made from: a seeded order of the source's, repeated.

    Args:
      labels: (num,) classes that the images shall have; None: as they come.
    Raises: ValueError for a label that no image of the source has.
    """
    order = np.random.default_rng(seed).permutation(len(source.images))
    if labels is None:
        rows = order[np.arange(first, first + num) % len(order)]
    else:
        rows = np.zeros(num, np.int64)
        for label in np.unique(labels):
            (wanted,), members = np.nonzero(labels == label), order[source.labels[order] == label]
            if not len(members):
                raise ValueError(f"{source.said} have none of class {label} to make conditions of.")
            rows[wanted] = np.resize(members, len(wanted))
    images = data.decode(source.images[rows])
    return Given(images, source.labels[rows].astype(np.int32), drawn(task, seed, first, images))


def drawn(task: Task, seed: int, first: int, images: np.ndarray) -> Draws:
    """The task's random numbers for images number `first` and on of a seed: those that the samplers use."""

    def made(indices, images):
        return generate.drawn(task, rng.image_keys(rng.root(seed, "sample"), indices), images)

    indices = np.arange(first, first + len(images), dtype=np.int32)
    return jax.device_get(jax.jit(made)(indices, images))


def pictured(task: Task, at: Given, data: Data, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stored images as pictures show them: "input" where the task has one, "original", and what samplers made.

    Args:
      made: name -> stored images (n,...), the first of the set or all.
    """
    found = {"original": data.encode(at.images)}
    if task.shown is not None:
        found = {"input": data.encode(np.asarray(task.shown(at.batch(), at.draws)))} | found
    for name, stored in made.items():
        found[name] = data.encode(np.asarray(task.pasted(data.decode(stored), at.batch(), at.draws)))
    return found


def judge(config: ConfigDict, data: Data) -> Callable[[np.ndarray], np.ndarray] | None:
    """Images (N,...) in model units -> features (N,D) of the panel's first classifier; None if it has none."""
    _, nets, _ = panels.image_nets(config.evaluation.panel.to_dict(), data)
    net = next((net for net in nets.values() if net.judges), None)
    if net is None:
        return None
    extract = features.extractor(net, lambda images: np.asarray(images, np.float32))
    return lambda images: extract(np.asarray(images))[0]
