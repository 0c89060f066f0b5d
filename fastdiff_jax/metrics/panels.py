"""Panels: all the measures that one table compares samplers by."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.metrics import (
    features,
    frechet,
    inception_score,
    kid,
    mixture,
    precision_recall,
    samples,
)
from fastdiff_jax.metrics import references as references_of
from fastdiff_jax.types import Data, Metric


class Panel(NamedTuple):
    """Measures of a set of stored samples against a data set."""

    measure: Callable[..., dict[str, float]]  # (stored (N,...), labels (N,)) -> columns
    floor: Callable[[int, int], dict[str, float]]  # (N, seed) -> columns of real data
    nets: Mapping[str, Mapping[str, str]]  # feature column -> name and sha256 of its net
    headline: tuple[str, ...]  # columns that a figure shows, smaller is better
    floor_name: str
    references: Mapping[str, Mapping[str, str]] = {}  # feature column -> its reference file, where it has one
    remarks: tuple[str, ...] = ()  # sentences for the report
    measures: Mapping[str, Mapping] = {}  # column of a further measure -> its name, features and settings


class ImageSettings(NamedTuple):
    """What the image panel measures."""

    # column -> feature net: {"px": {"name": "pixels"}, ...}; with `reference`, a file of mu and sigma, its
    # distance is to that, and not to the data set
    features: Mapping[str, Mapping]
    manifold: str = ""  # the column whose features precision and recall live in; empty: neither
    k: int = 3  # neighbours of precision and recall
    nearest: bool = True  # look for the nearest training image, at N x M distances
    close: float = 1.0  # pixel L2 distance under which a sample counts as a copy
    # column -> another measure of a feature column, see MEASURES: {"kid": {"name": "kid", "features": "fid"}}
    measures: Mapping[str, Mapping] = {}


class ScoreSettings(NamedTuple):
    """Of the Inception Score."""

    splits: int = inception_score.SPLITS


class Measure(NamedTuple):
    """A further measure of a feature column."""

    features: str  # the column
    metric: Callable[[np.ndarray | None, int], Metric]  # (real features (M,D), number of samples)
    real: bool  # whether it compares with real features
    about: Mapping  # its name, features and settings


# name -> (settings, (settings, real, number) -> metric, whether it compares with real features)
MEASURES = {
    "kid": (kid.Settings, lambda settings, real, num: kid.metric(real, settings), True),
    "precision_recall": (
        precision_recall.Settings,
        lambda settings, real, num: precision_recall.metric(real, settings),
        True,
    ),
    "inception_score": (
        ScoreSettings,
        lambda settings, real, num: inception_score.metric(num, settings.splits),
        False,
    ),
}


def images(config, data: Data, shardings: tuple | None = None) -> Panel:
    """Frechet distances by feature net, precision, recall, label agreement, class shares, copies.

    Columns: one a feature net (its FD to the whole reference set, or to a file's statistics); precision,
    recall, density, coverage; agreement (share of samples that the classifier gives the asked label),
    share_min and share_max (smallest and largest class share by that classifier); nn (median pixel distance to
    the nearest TRAINING image), copies (share below `close`). Samples are compared as stored, so after the same
    quantiser as the data. A further measure called c has the columns c and c_std (kid, inception_score), or
    c_precision, c_recall, c_density and c_coverage.

    Features stream through Frechet distances and scores; KID and precision and recall keep them.

    Args:
      shardings: as `features.stream` takes them.
    """
    settings, nets, references = image_nets(config, data)
    measures = image_measures(settings, nets)
    stream = {name: features.stream(net, data.decode, shardings=shardings) for name, net in nets.items()}
    kept = {measure.features for measure in measures.values() if measure.real} | {settings.manifold}
    wanted = [name for name in nets if name in kept or name not in references]
    real = {
        name: np.concatenate([batch["features"] for batch in stream[name](data.reference["image"])])
        for name in wanted
    }
    known = {
        name: references[name].statistics
        if name in references
        else frechet.statistics(frechet.gathered(_parts(real[name])))
        for name in nets
    }
    if settings.manifold:
        usual = precision_recall.Settings(k=settings.k)
        manifold = precision_recall.metric(real[settings.manifold], usual)
    if settings.nearest:
        training = data.decode(data.reference["image"][data.reference["split"] == 0])

    def metrics_of(column, num):
        found = {column: frechet.metric(known[column])}
        for name, measure in measures.items():
            if measure.features == column:
                found[name] = measure.metric(real.get(column), num)
        if column == settings.manifold:
            found[MANIFOLD] = manifold
        return found

    def measure(stored, labels):
        row, further = {}, {}
        for column, net in nets.items():
            metrics, answers = metrics_of(column, len(stored)), []
            totals = {name: metric.init() for name, metric in metrics.items()}
            for batch in stream[column](stored):
                totals = {name: metrics[name].update(total, {}, batch) for name, total in totals.items()}
                answers += [batch["logits"]] if net.judges else []
            found = {name: metric.compute(totals[name]) for name, metric in metrics.items()}
            row[column] = found.pop(column)["fd"]
            if answers and data.classes:
                logits = np.concatenate(answers)
                shares = samples.shares(logits.argmax(1), data.classes)
                row |= {
                    "agreement": samples.agreement(logits, labels),
                    "share_min": shares.min(),
                    "share_max": shares.max(),
                }
            further |= found
        for name in measures:
            row |= _columns(name, further[name])
        row |= further.get(MANIFOLD, {})
        if settings.nearest:
            distances = samples.nearest(data.decode(stored), training)
            row |= {
                "nn": float(np.median(distances)),
                "copies": float(np.mean(distances < settings.close)),
            }
        return row

    def floor(num, seed):
        del num
        halves = lambda values: np.array_split(values[order], [len(values) // 2])
        row = {}
        for column in (name for name in wanted if name not in references):
            order = np.random.default_rng(seed).permutation(len(real[column]))
            row[column] = frechet.between(*(frechet.gathered(_parts(h)) for h in halves(real[column])))
        return row

    identities = {name: features.identity(net) for name, net in nets.items()}
    remarks = [
        f"Column {name} is no FID: its weights, sha256 {net.sha256[:12]}, are not the published ones."
        for name, net in nets.items()
        if net.metadata.get("weights") == ""
    ]
    files = {
        name: {**one.about, "file": Path(settings.features[name]["reference"]).name, "sha256": one.sha256}
        for name, one in references.items()
    }
    floor_name = "real, half against half"
    recorded = _recorded(settings, measures)
    return Panel(measure, floor, identities, tuple(nets), floor_name, files, tuple(remarks), recorded)


MANIFOLD = object()  # the measure that `manifold` asks for, among those with names


def _parts(values):
    """Features (N,D) in batches, so that no double of all of them is made."""
    return np.array_split(values, -(-len(values) // 4096))


def _columns(name, found):
    """A measure's values by column: its own name for the value that carries its kind."""
    if "precision" in found:
        return {f"{name}_{key}": value for key, value in found.items()}
    mean, deviation = found.values()
    return {name: mean, f"{name}_std": deviation}


def image_nets(
    config, data: Data
) -> tuple[ImageSettings, dict[str, features.Features], dict[str, references_of.Reference]]:
    """Settings of the image panel, its feature nets and reference files; reads no images.

    Raises: ValueError for unknown settings, or nets and files that are not there or do not fit the data.
    """
    settings = registry.options(ImageSettings, config, "panel images")
    nets, references = {}, {}
    for column, request in settings.features.items():
        request = dict(request)
        file = request.pop("reference", "")
        nets[column] = net = features.build(request, data.shape)
        if file:
            references[column] = references_of.read(file)
            references_of.check(references[column], Path(file).name, net.dim, features.identity(net))
    if settings.manifold and settings.manifold not in nets:
        raise ValueError(
            f"panel images: manifold is {settings.manifold!r}; known feature columns: {', '.join(nets)}."
        )
    image_measures(settings, nets)
    return settings, nets, references


def image_measures(settings: ImageSettings, nets: Mapping[str, features.Features]) -> dict[str, Measure]:
    """The further measures by name. Raises: ValueError for an unknown one, setting or feature column."""
    made = {}
    for column, request in settings.measures.items():
        request = dict(request)
        name, of = request.pop("name", None), request.pop("features", None)
        if name not in MEASURES:
            raise ValueError(f"panel images: no measure {name!r} for {column}; known: {', '.join(MEASURES)}.")
        if of not in nets or column in nets:
            raise ValueError(
                f"panel images: measure {column} is of the features {of!r}; known feature columns, whose names "
                f"it must not take: {', '.join(nets)}."
            )
        if name == "inception_score" and nets[of].name.startswith("pixels"):
            raise ValueError(f"panel images: measure {column} needs a classifier's logits; {of} are pixels.")
        kind, build, real = MEASURES[name]
        options = registry.options(kind, request, f"measure {column}")
        about = {"name": name, "features": of, **options._asdict()}
        made[column] = Measure(of, functools.partial(build, options), real, about)
    return made


def _recorded(settings, measures):
    """What was measured how, by the columns of the table."""
    found = {}
    for name, measure in measures.items():
        several = measure.about["name"] == "precision_recall"
        columns = [f"{name}_{key}" for key in precision_recall.COLUMNS] if several else [name]
        found |= dict.fromkeys(columns, measure.about)
    if settings.manifold:
        usual = precision_recall.Settings(k=settings.k)._asdict()
        about = {"name": "precision_recall", "features": settings.manifold, **usual}
        found |= dict.fromkeys(precision_recall.COLUMNS, about)
    return found


class NoSettings(NamedTuple):
    """The mixture panel has none."""


def exact_mixture(config, data: Data, shardings: tuple | None = None) -> Panel:
    """Errors against a known mixture: see `mixture.compare`. The floor is the mixture's own samples."""
    del shardings  # nothing of it is computed on devices
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


PANELS: dict[str, Callable[..., Panel]] = {"images": images, "mixture": exact_mixture}
CHECKS = {"images": image_nets, "mixture": check_mixture}


def build(config, data: Data, shardings: tuple | None = None) -> Panel:
    """The panel that `config["name"]` asks for. Raises: ValueError naming the known ones."""
    return _named(PANELS, config)(config, data, shardings)


def check(config, data: Data) -> None:
    """Raises ValueError for what `build` would refuse, without reading the data: an outline will do."""
    _named(CHECKS, config)(config, data)


def _named(table, config):
    if config["name"] not in table:
        raise ValueError(f"no evaluation panel {config['name']!r}; known: {', '.join(table)}.")
    return table[config["name"]]
