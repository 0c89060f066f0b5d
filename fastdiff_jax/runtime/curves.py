"""What a study of teachers found: curves, images and calls to the same distance, paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastdiff_jax.runtime import report, results
from fastdiff_jax.runtime.study import Bench, grid


class Point(NamedTuple):
    """One run's weights after some images under one sampler."""

    row: str
    seed: int  # of training
    images: int  # seen in training
    solver: str  # by its name in the study
    nfe: int
    values: Mapping[str, float]  # the panel's columns, means over the sampling seeds
    ms_per_image: float
    compile_seconds: float


class Study(NamedTuple):
    """All points, and who is compared with whom."""

    points: Sequence[Point]
    baselines: Mapping[str, str]  # by row; "" for one that has none
    columns: tuple[str, ...]  # that are compared, smaller is better
    curve: tuple[str, int]  # solver and calls that parts of the runs are measured with

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(row, its baseline)."""
        return [(row, other) for row, other in self.baselines.items() if other]


class Pair(NamedTuple):
    """A row against its baseline by one column, over the training seeds that both have."""

    row: str
    baseline: str
    column: str
    own: Sequence[float]  # at the end of training, by seed
    other: Sequence[float]
    ratio: float | None  # images to the baseline's last distance, of those the baseline needs; on mean curves
    ratios: Sequence[float | None]  # the same by seed
    converse: float | None  # the baseline's images to this row's last distance, of those this row needs

    @property
    def differences(self) -> np.ndarray:
        """(seeds,) own - other."""
        return np.subtract(self.own, self.other)

    @property
    def verdict(self) -> str:
        """Whether all seeds agree, and by more than their spread."""
        mean, deviation = spread(self.differences)
        wins = int((self.differences < 0).sum())
        if len(self.own) == 1:
            return ("lower" if wins else "not lower") + " with the one seed there is"
        clear = wins in (0, len(self.own)) and abs(mean) > deviation
        said = ("better" if wins else "worse") if clear else "no clear difference"
        return f"{said} (lower with {wins} of {len(self.own)} seeds)"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; zero for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def seeds(study: Study, row: str) -> list[int]:
    """A row's training seeds."""
    return list(dict.fromkeys(point.seed for point in study.points if point.row == row))


def common(study: Study, row: str, baseline: str) -> list[int]:
    """The training seeds that two rows have both."""
    return [seed for seed in seeds(study, row) if seed in seeds(study, baseline)]


def titled(study: Study, row: str) -> str:
    """A row's name, with the number of its training seeds where not all rows have as many."""
    own = len(seeds(study, row))
    if own == max(len(seeds(study, other)) for other in study.baselines):
        return row
    return f"{row} ({own} seed{'s' if own > 1 else ''})"


def curve(study: Study, row: str, column: str, chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (points,) and distances (seeds, points) of a row's parts."""
    values = {}
    for point in study.points:
        if (point.row, point.solver, point.nfe) == (row, *study.curve):
            values[point.seed, point.images] = point.values[column]
    images = sorted({seen for _, seen in values})
    return np.array(images, float), np.array([[values[seed, seen] for seen in images] for seed in chosen])


def finals(
    study: Study, row: str, column: str, chosen: Sequence[int]
) -> dict[tuple[str, int], list[float]]:
    """Distances by chosen training seed of a row's last weights, by solver and calls."""
    last, found = max(point.images for point in study.points if point.row == row), {}
    for point in study.points:
        if (point.row, point.images) == (row, last) and point.seed in chosen:
            found.setdefault((point.solver, point.nfe), []).append(point.values[column])
    return found


def reached(images: np.ndarray, values: np.ndarray, level: float) -> float | None:
    """Images (points,) at which values (points,), linear in between, first come down to a level.

    None if they never do; the first point's images if they start there, as nothing is known before.
    """
    below = np.flatnonzero(values <= level)
    if not len(below):
        return None
    end = below[0]
    if end == 0:
        return float(images[0])
    part = (values[end - 1] - level) / (values[end - 1] - values[end])
    return float(images[end - 1] + part * (images[end] - images[end - 1]))


def share(own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float | None:
    """Images that one curve needs to the other's last value, of those that the other needs; None: never."""
    level = other[1][-1]
    there = reached(*own, level)
    return None if there is None else there / reached(*other, level)


def pair(study: Study, row: str, baseline: str, column: str) -> Pair:
    """One comparison. Raises: ValueError if no training seed is common to both."""
    both = common(study, row, baseline)
    if not both:
        raise ValueError(f"rows {row} and {baseline} have no training seed in common; give both the same.")
    (images, own), (theirs, other) = (curve(study, name, column, both) for name in (row, baseline))
    mean, rival = (images, own.mean(0)), (theirs, other.mean(0))
    ratios = [share((images, a), (theirs, b)) for a, b in zip(own, other)]
    last = own[:, -1].tolist(), other[:, -1].tolist()
    return Pair(row, baseline, column, *last, share(mean, rival), ratios, share(rival, mean))


def fewest(study: Study, row: str, baseline: str, column: str, solver: str) -> tuple[int, int | None]:
    """The baseline's most calls, and the fewest of a row that are as good, in the mean over common seeds."""
    found = [finals(study, one, column, common(study, row, baseline)) for one in (row, baseline)]
    own, other = (
        {nfe: np.mean(values) for (name, nfe), values in cells.items() if name == solver} for cells in found
    )
    most = max(other)
    return most, min((nfe for nfe, value in own.items() if value <= other[most]), default=None)


def card(study: Study) -> list[dict[str, Any]]:
    """What card.json holds of the comparisons."""
    found = []
    for row, baseline in study.pairs:
        for column in study.columns:
            one = pair(study, row, baseline, column)
            found.append({**one._asdict(), "difference": spread(one.differences), "verdict": one.verdict})
    return found


def summary(study: Study) -> list[str]:
    """A sentence for each comparison."""
    lines = []
    for row, baseline in study.pairs:
        for column in study.columns:
            one = pair(study, row, baseline, column)
            needed = "does not reach the baseline's last distance"
            if one.ratio is not None:
                needed = f"needs {one.ratio:.2f} x the baseline's images to its last distance"
            lines.append(
                f"- {row} against {baseline}, {results.heading(column)}: "
                f"{report.spread(*spread(one.own))} against {report.spread(*spread(one.other))}, "
                f"{one.verdict}; {needed}."
            )
    return lines


def markdown(
    title: str,
    study: Study,
    bench: Bench,
    floor: Mapping[str, tuple[float, float]],
    runs: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> list[str]:
    """The lines of report.md: what was found, then the tables by measure."""
    solver, nfe = study.curve
    hardware, sampling = report.device(), ", ".join(map(str, bench.labels))
    lines = [
        f"# {title}", "",
        f"{bench.identity['num']} samples a point, sampling seed {sampling}; mean ± sample standard deviation "
        f"over training seeds. Curves, differences and images are of {solver} at {nfe} network calls.",
        "", *summary(study), "",
    ]  # fmt: skip
    for column in study.columns:
        note = f"{bench.panel.floor_name}: {report.spread(*floor[column])}."
        lines += [f"## {results.heading(column)}", "", note, ""]
        lines += ["### By training images", "", *by_images(study, column), ""]
        lines += ["### Against the baseline", "", NOTE, "", *against(study, column), ""]
        lines += _by_calls(study, column)
    lines += ["![Distances by training images and by network calls](report.png)", ""]
    spent = ", ".join(f"{what.replace('_', ' ')} {value:.0f} s" for what, value in seconds.items())
    lines += ["## Cost", "", f"{spent}. Wall time on the machine named below.", "", *costs(runs), ""]
    lines += [
        f"{hardware['count']} x {hardware['kind']} ({hardware['platform']}); "
        + ", ".join(f"{name} {version}" for name, version in report.versions().items()),
    ]
    return lines


def by_images(study: Study, column: str) -> list[str]:
    """A Markdown table of the curves: rows down, thousands of images across."""
    curves = {row: curve(study, row, column, seeds(study, row)) for row in study.baselines}
    counts = sorted({seen for images, _ in curves.values() for seen in images})
    lines = [
        "| row \\ thousand images | " + " | ".join(f"{seen / 1000:.4g}" for seen in counts) + " |",
        "| --- |" + " ---: |" * len(counts),
    ]
    for row, (images, values) in curves.items():
        at = dict(zip(images, values.T))
        cells = [report.spread(*spread(at[seen])) if seen in at else "" for seen in counts]
        lines.append(f"| {titled(study, row)} | " + " | ".join(cells) + " |")
    return lines


def against(study: Study, column: str) -> list[str]:
    """A Markdown table of the comparisons: paired differences, and images to the same distance."""
    lines = [
        "| row | baseline | last distance | baseline's | paired difference | | x images | by seed | converse |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | --- | ---: |",
    ]
    for row, baseline in study.pairs:
        one = pair(study, row, baseline, column)
        own, other, difference = (spread(values) for values in (one.own, one.other, one.differences))
        gap = signed(*difference)
        cells = [
            titled(study, row), baseline, report.spread(*own), report.spread(*other), gap, one.verdict,
            times(one.ratio), ", ".join(map(times, one.ratios)), times(one.converse),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def signed(mean: float, deviation: float) -> str:
    """A difference with its sign and its spread."""
    text = results.number(abs(mean))
    return ("-" if mean < 0 else "+") + report.spread(abs(mean), deviation) if text != "0" else text


def times(ratio: float | None) -> str:
    """A ratio of images."""
    return "not reached" if ratio is None else f"{ratio:.2f}"


def _by_calls(study: Study, column: str) -> list[str]:
    """The lines about network calls: a table a solver, then the fewest calls to the same distance."""
    found = {row: finals(study, row, column, seeds(study, row)) for row in study.baselines}
    solvers = list(dict.fromkeys(name for cells in found.values() for name, _ in cells))
    lines = []
    for solver in solvers:
        of, deviations = {}, {}
        for row, cells in found.items():
            for (name, nfe), values in cells.items():
                if name == solver:
                    cell = titled(study, row), nfe
                    of[cell], deviations[cell] = spread(values)
        lines += [f"### By network calls: {solver}", "", *grid(of, deviations=deviations, down="row"), ""]
    note = "The fewest calls that are as good as the baseline's most, in the mean over seeds that both have."
    lines += ["### Calls to the baseline's distance", "", note, ""]
    lines += ["| row | baseline | " + " | ".join(solvers) + " |", "| --- | --- |" + " ---: |" * len(solvers)]
    for row, baseline in study.pairs:
        cells = []
        for solver in solvers:
            most, calls = fewest(study, row, baseline, column, solver)
            cells.append(f"not reached of {most}" if calls is None else f"{calls} of {most}")
        lines.append(f"| {titled(study, row)} | {baseline} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def costs(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A Markdown table of what training took, by run."""
    lines = ["| row | seed | run | steps | images | seconds |", "| --- | ---: | --- | ---: | ---: | ---: |"]
    for one in runs:
        cells = [one["row"], str(one["seed"]), one["name"], f"{one['steps']:,}", f"{one['images']:,}"]
        lines.append("| " + " | ".join([*cells, f"{one['seconds']:.0f}"]) + " |")
    return lines


NOTE = (
    "x images: those that a row needs to the baseline's last distance, as a multiple of those the baseline "
    "needs, on the means over seeds and by seed; curves are linear between their points, and the first "
    "crossing counts, or the first point if a curve starts below. Converse: what the baseline needs to the "
    "row's last distance, as a multiple of what the row needs. Differences are by training seed, negative "
    "where the row is better."
)
