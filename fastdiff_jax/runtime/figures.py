"""The pictures of a report: distances by cost, training curves, and samples."""

import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fastdiff_jax.runtime.results import (
    REFERENCE,
    TEACHER,
    TRAINED,
    Report,
    Row,
    heading,
    number,
    of_kind,
)

STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.edgecolor": "#5b6470", "axes.labelcolor": "#3a4149", "text.color": "#1d2126",
    "xtick.color": "#3a4149", "ytick.color": "#3a4149", "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e7eb", "grid.linewidth": 0.8, "legend.frameon": False,
    "image.interpolation": "nearest",
}  # fmt: skip
TRAINED_COLORS = ("#d1495b", "#8e44ad", "#c77b0a")
TEACHER_COLORS = ("#1f5f8b", "#2a9d8f", "#8d99ae", "#7a9e3f", "#b08968")
FLOOR_COLOR, REAL_COLOR = "#3a4149", "#b9c0c8"
COST_HEIGHT, CURVE_HEIGHT, PANEL_HEIGHT = 4.0, 2.2, 3.9  # inches
MOST_CURVES, MOST_PANELS, ACROSS = 5, 12, 4  # ACROSS panels of samples a line
SIDE = 10  # images along a side of a panel
CAPTION = 40  # characters that fit above one
POINTS = 2000  # drawn of a set of points
CURVES = ("loss", "gap", "accuracy")  # what logged names must start with to be drawn


def overview(report: Report) -> bytes:
    """The PNG of a report: headline columns against NFE, training curves, real and made samples."""
    shown, curves = panels(report), list(logged(report.curves))[:MOST_CURVES]
    heights = [COST_HEIGHT, CURVE_HEIGHT if curves else 0, PANEL_HEIGHT * -(-len(shown) // ACROSS)]
    heights = [height for height in heights if height]
    with rc_context(STYLE):
        figure = canvas((15, 0.5 + sum(heights)))
        figure.suptitle(report.title, x=0.012, ha="left", fontsize=15, fontweight="bold")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.03)
        top, *middle, bottom = parts
        charts = side_by_side(top, len(report.headline))
        for ax, column in zip(charts, report.headline):
            costs(ax, report.rows, column)
        handles, names = charts[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="upper right", ncols=len(names), fontsize=9)
        for ax, curve in zip(side_by_side(*middle, len(curves)) if curves else (), curves):
            training(ax, *curve)
        axes = bottom.subplots(-(-len(shown) // ACROSS), ACROSS, squeeze=False).ravel()
        for ax in axes:
            ax.set_axis_off()
        for ax, panel in zip(axes, shown):
            draw(ax, panel.samples, panel.labels, report.mixture, report.real)
            ax.set_title(panel.title, fontsize=10.5, color=panel.color)
        return png(figure)


def samples(
    values: np.ndarray, labels: np.ndarray | None, mixture: Mapping[str, np.ndarray] | None
) -> bytes:
    """The PNG of one set of samples: a grid of images, or a scatter plot of points."""
    with rc_context(STYLE):
        ax = (figure := canvas((6, 6))).add_subplot()
        ax.set_axis_off()
        draw(ax, values, labels, mixture, values)
        return png(figure)


class Panel(NamedTuple):
    """One picture of samples."""

    title: str
    samples: np.ndarray
    labels: np.ndarray | None
    color: str = STYLE["text.color"]


def panels(report: Report) -> list[Panel]:
    """The data, what was trained, and the teacher from many calls to few."""
    teacher = sorted(of_kind(report.rows, TEACHER), key=lambda row: -(row.nfe or 0))
    rows = [row for row in (*of_kind(report.rows, TRAINED), *teacher) if row.samples is not None]
    found = [Panel("Real data", report.real, report.real_labels)]
    for row in rows[: MOST_PANELS - 1]:
        color = TRAINED_COLORS[0] if row.kind == TRAINED else STYLE["text.color"]
        found.append(Panel(_caption(row, report.headline), row.samples, row.labels, color))
    return found


def costs(ax, rows: Sequence[Row], column: str) -> None:
    """One column against NFE, on logarithmic axes.

    A line is a family of training-free samplers, a star is what was trained, a band is the floor.
    """
    rows = [row for row in rows if column in row.values]
    scale(ax, [row.values[column][0] for row in rows])
    for floor in of_kind(rows, REFERENCE):
        mean, deviation = floor.values[column]
        ax.axhspan(mean - deviation, mean + deviation, color=FLOOR_COLOR, alpha=0.12, lw=0)
        ax.axhline(mean, color=FLOOR_COLOR, lw=1.2, ls=(0, (4, 3)), label=floor.name)
    marks = {TEACHER: (TEACHER_COLORS, dict(marker="o", ms=6, zorder=3)),
             TRAINED: (TRAINED_COLORS, dict(marker="*", ms=19, zorder=4))}  # fmt: skip
    for kind, (colors, mark) in marks.items():
        chosen = sorted(of_kind(rows, kind), key=lambda row: row.nfe)
        families = dict.fromkeys(row.family for row in chosen)
        for color, family in zip(itertools.cycle(colors), families):
            line = [row for row in chosen if row.family == family]
            means, deviations = zip(*(row.values[column] for row in line))
            ax.errorbar([row.nfe for row in line], means, deviations, color=color, label=family,
                        mec="white", mew=0.8, lw=1.6, elinewidth=1.2, **mark)  # fmt: skip
            for row in line if kind == TRAINED else ():
                at = (row.nfe, row.values[column][0])
                ax.annotate(number(at[1]), at, (11, 0), textcoords="offset points", va="center",
                            fontweight="bold", color=color)  # fmt: skip
    call_axis(ax, sorted({row.nfe for row in rows if row.nfe}))
    ax.set_title(heading(column))


def training(ax, name: str, key: str, steps: np.ndarray, values: np.ndarray) -> None:
    """One logged quantity: faint as logged, strong as a running median."""
    width = max(1, len(values) // 20)
    smooth = [np.median(values[max(0, i - width) : i + width + 1]) for i in range(len(values))]
    ax.plot(steps, values, color=TEACHER_COLORS[0], lw=0.8, alpha=0.3)
    ax.plot(steps, smooth, color=TEACHER_COLORS[0], lw=1.8)
    if values.min() > 0 and values.max() > 5 * values.min():
        scale(ax, values)
    ax.set_title(f"{name}: {key.replace('_', ' ')}", fontsize=9.5)
    ax.tick_params(labelsize=8.5)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("step", fontsize=8.5, labelpad=1)


def draw(
    ax, values: np.ndarray, labels: np.ndarray | None, mixture: Mapping | None, real: np.ndarray
) -> None:
    """One set of samples, whatever they are."""
    if values.ndim == 2:
        return scatter(ax, values, mixture, real)
    ax.imshow(mosaic(values, labels), cmap="gray", vmin=0, vmax=255)
    ax.set_anchor("NW")


def mosaic(images: np.ndarray, labels: np.ndarray | None, side: int = SIDE) -> np.ndarray:
    """(rows, columns[, 3]) uint8 of up to side x side images (N,H,W,C), white between them.

    With labels every row is of one class, in order; of more classes than rows, some evenly spaced.
    """
    order = np.arange(len(images))
    if labels is None:
        rows = [order[i : i + side] for i in range(0, min(len(images), side * side), side)]
    else:
        classes = np.unique(labels)
        if len(classes) > side:
            classes = classes[np.linspace(0, len(classes) - 1, side).round().astype(int)]
        each = max(1, side // len(classes))
        members = [order[labels == label][: each * side] for label in classes]
        rows = [some[i : i + side] for some in members for i in range(0, len(some), side)]
    height, width, channels = images.shape[1:]
    gap = 1 if height < 16 else 2
    shape = (len(rows) * (height + gap) - gap, max(map(len, rows)) * (width + gap) - gap)
    canvas = np.full((*shape, channels), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = images[index]
    return canvas if channels == 3 else canvas[..., 0]


def scatter(ax, points: np.ndarray, mixture: Mapping | None, real: np.ndarray) -> None:
    """Points (N,d) over the data; circles are one and two deviations of a known mixture's modes.

    Above two dimensions the plane is the one that holds most of the modes (or of the data).
    """
    centre, axes = _plane(np.asarray(mixture["means"] if mixture else real, np.float64))
    shown, drawn = ((values[:POINTS] - centre) @ axes.T for values in (real, points))
    reach, note = 1.15 * np.abs(shown).max(), dict(transform=ax.transAxes, fontsize=9)
    ax.scatter(*shown.T, s=5, color=REAL_COLOR, lw=0, alpha=0.6)
    if points is not real:
        ax.scatter(*drawn.T, s=5, color=TRAINED_COLORS[0], lw=0, alpha=0.45)
        outside = int((np.abs(drawn) > reach).any(1).sum())
        if outside:
            ax.text(0.99, 0.01, f"{outside} of {len(drawn)} outside", ha="right", **note)
    if mixture:
        for mean, scale in zip((mixture["means"] - centre) @ axes.T, mixture["scales"]):
            for radius in (scale, 2 * scale):
                ax.add_patch(Circle(mean, radius, fill=False, color=FLOOR_COLOR, lw=0.7))
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    if points.shape[1] > 2:
        ax.text(0.01, 0.01, f"a plane of {points.shape[1]} dimensions", **note)


def _plane(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origin (d,) and two axes (2,d) to draw in: the coordinates themselves in two dimensions."""
    if values.shape[1] == 2:
        return np.zeros(2), np.eye(2)
    centre = values.mean(0)
    return centre, np.linalg.svd(values - centre, full_matrices=False)[2][:2]


def _caption(row: Row, headline: Sequence[str]) -> str:
    caption = f"{row.family}, {row.nfe} NFE"
    for column in headline:
        if column in row.values:
            longer = f"{caption}   {column.replace('_', ' ')} {number(row.values[column][0])}"
            caption = longer if len(longer) <= CAPTION else caption
    return caption


def logged(paths: Mapping[str, Path]) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(experiment, key, steps, values) of the logged quantities worth a picture, where finite."""
    for name, path in paths.items():
        records = [json.loads(line) for line in Path(path).read_text().splitlines()]
        keys = dict.fromkeys(key for record in records for key in record)
        for key in filter(lambda key: key.startswith(CURVES), keys):
            pairs = [(record["step"], record[key]) for record in records if key in record]
            finite = [pair for pair in pairs if pair[1] is not None]  # null: it was not finite
            if finite:
                yield name, key, *np.array(finite, np.float64).T


def scale(ax, values: Sequence[float]) -> None:
    """A logarithmic axis, linear near zero if need be: unbiased estimates may be negative."""
    if min(values, default=1.0) > 0:
        ax.set_yscale("log")
        wide = max(values) > 500 * min(values)
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        smallest = min((abs(value) for value in values if value), default=1.0)
        ax.set_yscale("symlog", linthresh=smallest)


def call_axis(ax, calls: Sequence[int]) -> None:
    """A logarithmic axis of the call counts that occur, without labels that would touch."""
    ax.set_xscale("log")
    shown, last = [], 0.0
    for count in calls:
        if math.log(count) >= last + 0.14 or not shown:
            shown.append(count)
            last = math.log(count)
    ax.set_xticks(shown, [str(count) for count in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    if calls:
        ax.set_xlim(calls[0] / 1.25, max(calls[-1] * 1.25, 2 * calls[0]))
    ax.set_xlabel("network calls per image (NFE)")


def canvas(size: tuple[float, float]) -> Figure:
    """An empty figure, inches."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # no display, whatever backend the user has
    return figure


def side_by_side(figure, count: int) -> np.ndarray:
    """(count,) axes from left to right."""
    return figure.subplots(1, count, squeeze=False)[0]


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
