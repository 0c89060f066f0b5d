"""Panels: all the measures that one table compares samplers by."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.metrics import features, frechet, mixture, precision_recall, samples
from fastdiff_jax.types import Data


class Panel(NamedTuple):
    """Measures of a set of stored samples against a data set."""

    measure: Callable[..., dict[str, float]]  # (stored (N,...), labels (N,)) -> columns
    floor: Callable[[int, int], dict[str, float]]  # (N, seed) -> columns of real data
    nets: Mapping[str, Mapping[str, str]]  # feature column -> name and sha256 of its net
    headline: tuple[str, ...]  # columns that a figure shows, smaller is better
    floor_name: str


class ImageSettings(NamedTuple):
    """What the image panel measures."""

    features: Mapping[str, Mapping]  # column -> feature net: {"px": {"name": "pixels"}, ...}
    manifold: str = ""  # the column whose features precision and recall live in; empty: neither
    k: int = 3  # neighbours of precision and recall
    nearest: bool = True  # look for the nearest training image, at N x M distances
    close: float = 1.0  # pixel L2 distance under which a sample counts as a copy


def images(config, data: Data) -> Panel:
    """Frechet distances by feature net, precision, recall, label agreement, class shares, copies.

    Columns: one a feature net (its FD to the whole reference set); precision, recall, density,
    coverage; agreement (share of samples that the classifier gives the asked label), share_min and
    share_max (smallest and largest class share by that classifier); nn (median pixel distance to the
    nearest TRAINING image), copies (share below `close`). Samples are compared as stored, so after
    the same quantiser as the data.
    """
    settings, nets = image_nets(config, data)
    extract = {column: features.extractor(net, data.decode) for column, net in nets.items()}
    real = {column: extract[column](data.reference["image"])[0] for column in nets}
    moments = {column: frechet.moments(values) for column, values in real.items()}
    if settings.nearest:
        training = data.decode(data.reference["image"][data.reference["split"] == 0])

    def measure(stored, labels):
        row, found = {}, {}
        for column in nets:
            found[column], logits = extract[column](stored)
            row[column] = frechet.between(frechet.moments(found[column]), moments[column])
            if logits is not None and data.classes:
                shares = samples.shares(logits.argmax(1), data.classes)
                row |= {
                    "agreement": samples.agreement(logits, labels),
                    "share_min": shares.min(),
                    "share_max": shares.max(),
                }
        if settings.manifold:
            row |= precision_recall.precision_recall(
                real[settings.manifold], found[settings.manifold], k=settings.k
            )
        if settings.nearest:
            distances = samples.nearest(data.decode(stored), training)
            row |= {
                "nn": float(np.median(distances)),
                "copies": float(np.mean(distances < settings.close)),
            }
        return row

    def floor(num, seed):
        del num
        order = np.random.default_rng(seed).permutation(len(data.reference["label"]))
        half = len(order) // 2
        return {
            column: frechet.between(
                frechet.moments(values[order[:half]]), frechet.moments(values[order[half:]])
            )
            for column, values in real.items()
        }

    identities = {column: {"net": net.name, "sha256": net.sha256} for column, net in nets.items()}
    return Panel(measure, floor, identities, tuple(nets), "real, half against half")


def image_nets(config, data: Data) -> tuple[ImageSettings, dict[str, features.Features]]:
    """Settings of the image panel and its feature nets; reads no images.

    Raises: ValueError for unknown settings, or nets that are not there or do not fit the data.
    """
    settings = registry.options(ImageSettings, config, "panel images")
    nets = {column: features.build(request, data.shape) for column, request in settings.features.items()}
    if settings.manifold and settings.manifold not in nets:
        raise ValueError(
            f"panel images: manifold is {settings.manifold!r}; known feature columns: {', '.join(nets)}."
        )
    return settings, nets


class NoSettings(NamedTuple):
    """The mixture panel has none."""


def exact_mixture(config, data: Data) -> Panel:
    """Errors against a known mixture: see `mixture.compare`. The floor is the mixture's own samples."""
    check_mixture(config, data)

    def measure(stored, labels):
        del labels
        return mixture.compare(stored, data.exact)

    def floor(num, seed):
        rows = np.random.default_rng(seed).permutation(len(data.reference["image"]))[:num]
        return mixture.compare(data.reference["image"][rows], data.exact)

    return Panel(
        measure, floor, {}, ("mmd2_rbf", "covariance_error", "mean_error"), "exact samples"
    )


def check_mixture(config, data: Data) -> None:
    """Raises: ValueError for settings, or data whose distribution is not known."""
    registry.options(NoSettings, config, "panel mixture")
    if data.exact is None:
        raise ValueError(
            f"panel mixture needs data whose distribution is known, such as toys; {data.name} is not."
        )


PANELS: dict[str, Callable[[Any, Data], Panel]] = {"images": images, "mixture": exact_mixture}


CHECKS = {"images": image_nets, "mixture": check_mixture}


def build(config, data: Data) -> Panel:
    """The panel that `config["name"]` asks for. Raises: ValueError naming the known ones."""
    return _named(PANELS, config)(config, data)


def check(config, data: Data) -> None:
    """Raises ValueError for what `build` would refuse, without reading the data: an outline will do."""
    _named(CHECKS, config)(config, data)


def _named(table, config):
    if config["name"] not in table:
        raise ValueError(f"no evaluation panel {config['name']!r}; known: {', '.join(table)}.")
    return table[config["name"]]
