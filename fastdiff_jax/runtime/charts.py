"""The pictures of a study: samplers by their cost, students by that of training, teachers at one budget."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fastdiff_jax.runtime import curves
from fastdiff_jax.runtime.figures import (
    FLOOR_COLOR,
    REAL_COLOR,
    STYLE,
    TEACHER_COLORS,
    TRAINED_COLORS,
    call_axis,
    canvas,
    png,
    scale,
    side_by_side,
)
from fastdiff_jax.runtime.results import heading, number
from fastdiff_jax.runtime.students import best_free, converged


def frontier(
    title: str, cells: Sequence, floors: Mapping[str, float], trained: Sequence[str] = ()
) -> bytes:
    """The PNG of a study: each measure against NFE; solvers that are best at some count in colour.

    Args:
      cells: `study.Cell`s.
      floors: what real data score, by column; the columns that are drawn, before the distance.
      trained: rows of students, which are stars, grey ones if there are too many for a colour each.
    """
    stars = list(dict.fromkeys(trained))
    free = [cell for cell in cells if cell.solver not in stars]
    colors_of = _star_colors(cells, stars)
    measures = {column: (heading(column), lambda cell, c=column: cell.values[c]) for column in floors}
    measures["distance"] = ("Distance to the converged samples", lambda cell: cell.distance)
    with rc_context(STYLE):
        figure = canvas((15, 6.5))
        figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold")
        for ax, (column, (text, value)) in zip(side_by_side(figure, len(measures)), measures.items()):
            scale(ax, [value(cell) for cell in cells])
            if column in floors:
                ax.axhline(floors[column], color=FLOOR_COLOR, lw=1.2, ls=(0, (4, 3)))
            palette = TEACHER_COLORS if stars else (*TEACHER_COLORS, *TRAINED_COLORS)
            colors = dict(zip(_leaders(free, value), palette))
            for solver in dict.fromkeys(cell.solver for cell in free):
                line = sorted((cell.nfe, value(cell)) for cell in cells if cell.solver == solver)
                strong = solver in colors
                ax.plot(*zip(*line), color=colors.get(solver, REAL_COLOR), lw=2 if strong else 0.9,
                        marker="o", ms=5 if strong else 0, mec="white", mew=0.6, zorder=3 if strong else 2,
                        label=solver if strong else None)  # fmt: skip
            for row in stars:
                line = sorted((cell.nfe, value(cell)) for cell in cells if cell.solver == row)
                own = row in colors_of
                ax.plot(*zip(*line), color=colors_of.get(row, REAL_COLOR), lw=1.2 if own else 0, marker="*",
                        ms=15 if own else 11, mec="white" if own else FLOOR_COLOR, mew=0.7,
                        zorder=5 if own else 4, label=row if own else None)  # fmt: skip
            call_axis(ax, sorted({cell.nfe for cell in cells}))
            ax.set_title(text)
            name = "students, and the best without training" if stars else "best at some NFE"
            ax.legend(loc="upper right", fontsize=8.5, title=name, title_fontsize=8.5)
        return png(figure)


def students(
    title: str, cells: Sequence, costs: Sequence, floors: Mapping[str, float], height: float = 0.34
) -> bytes:
    """The PNG of a study's students: a line each by measure, and the first measure against the training's cost.

    Dots are the best training-free samplers of as many calls, the upright line is the one with the most calls;
    dashed is what real data score.

    Args:
      cells: `study.Cell`s.
      costs: `students.Cost`s, the teacher's first; who states no evaluations is not in the last picture.
      floors: as `frontier`.
      height: of a line, inches.
    """
    rows = {cost.row for cost in costs[1:]}
    made = [cell for cell in cells if cell.solver in rows]
    free = [cell for cell in cells if cell.solver not in rows]
    names = [f"{cell.solver}, {cell.nfe} NFE" for cell in made]
    with rc_context(STYLE):
        figure = canvas((15, max(5.0, 1.6 + height * len(made))))
        figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold")
        *charts, last = side_by_side(figure, len(floors) + 1)
        for ax, (column, floor) in zip(charts, floors.items()):
            _ladder(ax, made, free, column)
            ax.axvline(floor, color=FLOOR_COLOR, lw=1.2, ls=(0, (4, 3)))
            ax.set_yticks(range(len(made)), names if ax is charts[0] else [], fontsize=8.5)
        handles, labels = charts[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=len(labels), fontsize=9)
        _spent(last, made, costs, *next(iter(floors.items())))
        return png(figure)


def _ladder(ax, made: Sequence, free: Sequence, column: str) -> None:
    """A measure of every student, from the top down, with the training-free samplers to compare it with."""
    values = [cell.values[column] for cell in made]
    rivals = [(best_free(free, cell.nfe, column), place) for place, cell in enumerate(made)]
    rivals = [(cell.values[column], place) for cell, place in rivals if cell is not None]
    if rivals:
        ax.plot(*zip(*rivals), "o", color=TEACHER_COLORS[0], mec="white", label="training-free, as many calls")
    if free:
        most = converged(free)
        label = f"{most.solver}, {most.nfe} NFE"
        ax.axvline(most.values[column], color=TEACHER_COLORS[1], lw=1.4, label=label)
    star = dict(color=TRAINED_COLORS[0], ms=13, mec="white", mew=0.7)
    ax.plot(values, range(len(made)), "*", **star, label="students")
    for place, value in enumerate(values):
        ax.annotate(number(value), (value, place), (9, 0), textcoords="offset points", va="center",
                    fontsize=8.5, color=TRAINED_COLORS[0])  # fmt: skip
    if min(values) > 0:
        _log_axis(ax, "{:g}")
    ax.margins(x=0.12)
    ax.set_ylim(len(made) - 0.5, -0.5)
    ax.set_title(heading(column))


def _log_axis(ax, form: str) -> None:
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    ax.xaxis.set_minor_locator(NullLocator())


def _spent(ax, made: Sequence, costs: Sequence, column: str, floor: float) -> None:
    """A measure against the share of the teacher's network evaluations that a student's training made."""
    values = {(cell.solver, cell.nfe): cell.values[column] for cell in made}
    teacher, points = costs[0].evaluations, []
    for cost in costs[1:]:
        if teacher is not None and cost.evaluations is not None:
            share = 100 * cost.evaluations / teacher
            names = [f"{cost.row}, {cost.calls[0]}", *map(str, cost.calls[1:])]
            points += [(share, values[cost.row, nfe], name) for nfe, name in zip(cost.calls, names)]
    for share, value, name in points:
        ax.plot(share, value, "*", color=TRAINED_COLORS[0], ms=13, mec="white", mew=0.7)
        ax.annotate(name, (share, value), (6, 3), textcoords="offset points", fontsize=7.5)
    scale(ax, [value for _, value, _ in points])
    ax.axhline(floor, color=FLOOR_COLOR, lw=1.2, ls=(0, (4, 3)))
    _log_axis(ax, "{:g} %")
    ax.margins(x=0.2)
    ax.set_title(heading(column))
    ax.set_xlabel("network evaluations in training, of the teacher's")


def _star_colors(cells: Sequence, rows: Sequence[str]) -> dict[str, str]:
    """Colours by row: for all if they suffice, else for the first that have several counts of calls."""
    if len(rows) > len(TRAINED_COLORS):
        rows = [row for row in rows if sum(cell.solver == row for cell in cells) > 1]
    return dict(zip(rows, TRAINED_COLORS))


def _leaders(cells: Sequence, value) -> list[str]:
    """Solvers that are the best at some count, the most often best first."""
    best = [
        min((cell for cell in cells if cell.nfe == nfe), key=value).solver
        for nfe in sorted({cell.nfe for cell in cells})
    ]
    return sorted(dict.fromkeys(best), key=lambda solver: -best.count(solver))


LINES = ("-", "--", ":", "-.")  # solvers of a study of teachers
DOTS = dict(marker="o", ms=4, mec="white", mew=0.6)


def teachers(title: str, study: curves.Study, floors: Mapping[str, float]) -> bytes:
    """The PNG of a study of teachers: each measure by training images, and at the end by network calls.

    A picture a baseline with the rows that are compared with it; thin lines are training seeds, thick ones and
    bars their means and standard deviations. Dashed is what real data score.
    """
    alone = [row for row, other in study.baselines.items() if not other]
    groups = [[one, *(row for row, other in study.pairs if other == one)] for one in alone]
    with rc_context(STYLE):
        figure = canvas((max(9.0, 5.0 * len(groups)), 0.6 + 6.6 * len(floors)))
        figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold")
        axes = figure.subplots(2 * len(floors), len(groups), squeeze=False, sharey="row")
        for pair, (column, floor) in zip(axes.reshape(len(floors), 2, len(groups)), floors.items()):
            for top, bottom, rows in zip(*pair, groups):
                _curves(top, study, rows, column)
                _ends(bottom, study, rows, column)
                for ax in (top, bottom):
                    ax.axhline(floor, color=FLOOR_COLOR, lw=1.2, ls=(0, (4, 3)))
                    ax.set_title(f"{heading(column)}: {rows[0]}")
                    ax.legend(loc="upper right", fontsize=8)
        return png(figure)


def _row_colors(rows: Sequence[str]) -> dict[str, str]:
    colors = TEACHER_COLORS[0], TRAINED_COLORS[0], *TEACHER_COLORS[1:], *TRAINED_COLORS[1:]
    return dict(zip(rows, itertools.cycle(colors)))


def _curves(ax, study: curves.Study, rows: Sequence[str], column: str) -> None:
    """A measure by training images."""
    for row, color in _row_colors(rows).items():
        images, values = curves.curve(study, row, column, curves.seeds(study, row))
        for one in values if len(values) > 1 else ():
            ax.plot(images / 1e3, one, color=color, lw=0.7, alpha=0.45)
        ax.plot(images / 1e3, values.mean(0), color=color, lw=2, label=curves.titled(study, row), **DOTS)
    _measure_axis(ax, study, column)
    ax.set_xlabel("thousand training images")


def _ends(ax, study: curves.Study, rows: Sequence[str], column: str) -> None:
    """A measure of the last weights by network calls; a style of line a solver."""
    calls, named = set(), set()
    for row, color in _row_colors(rows).items():
        found = curves.finals(study, row, column, curves.seeds(study, row))
        for style, solver in zip(itertools.cycle(LINES), dict.fromkeys(name for name, _ in found)):
            own = {nfe: values for (name, nfe), values in found.items() if name == solver}
            x, means, deviations = np.array([(nfe, *curves.spread(own[nfe])) for nfe in sorted(own)]).T
            calls |= set(x.astype(int).tolist())
            label = solver if solver not in named else None
            named.add(solver)
            ax.plot([], [], color=FLOOR_COLOR, ls=style, label=label)
            ax.errorbar(x, means, deviations, color=color, ls=style, lw=1.6, capsize=2, **DOTS)
    _measure_axis(ax, study, column)
    call_axis(ax, sorted(calls))


def _measure_axis(ax, study: curves.Study, column: str) -> None:
    """The range of the values; bars may leave it, as a mean less a deviation may be near zero."""
    values = [point.values[column] for point in study.points]
    scale(ax, values)
    if min(values) > 0:
        ax.set_ylim(0.7 * min(values), 1.4 * max(values))
