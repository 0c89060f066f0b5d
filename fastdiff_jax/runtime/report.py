"""The outcome of a run for its reader: report.md, report.png, and card.json with the provenance."""

import itertools
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastdiff_jax.runtime import files, results
from fastdiff_jax.runtime.results import REFERENCE, TRAINED, Report, Row, heading, number

PACKAGES = ("fastdiff_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write(workdir: Path, report: Report) -> None:
    """Puts report.md, report.png and card.json into `workdir`, each whole; on process 0 only."""
    if jax.process_index() != 0:
        return
    from fastdiff_jax.runtime import figures  # matplotlib: a second of imports

    about, text, picture = card(report), markdown(report), figures.overview(report)
    if report.conditions:
        strips(workdir / "conditions.png", report.conditions)
    files.write_json(workdir / "card.json", about)
    files.write(workdir / "report.png", picture)
    files.write(workdir / "report.md", text.encode())


def grid(path: Path, samples: np.ndarray, labels: np.ndarray | None = None,
         mixture: Mapping[str, np.ndarray] | None = None) -> None:  # fmt: skip
    """A PNG of samples: images (N,H,W,C) in a grid, a row a class; points (N,d) as a scatter."""
    from fastdiff_jax.runtime import figures  # as in `write`

    files.write(path, figures.samples(samples, labels, mixture))


def strips(path: Path, named: Mapping[str, np.ndarray]) -> None:
    """A PNG of image sets (N,H,W,C) of equal N, a line each under its name."""
    from fastdiff_jax.runtime import pictures  # as in `write`

    files.write(path, pictures.strips(named))


def card(report: Report) -> dict[str, Any]:
    """What card.json holds: provenance, results, software and hardware."""
    source = report.provenance
    values = [
        {
            "name": row.name,
            "kind": row.kind,
            "nfe": row.nfe,
            "ms_per_image": row.ms_per_image,
            "values": {
                name: dict(mean=m, std=s) | ({"min": row.least[name]} if name in row.least else {})
                for name, (m, s) in row.values.items()
            },
        }
        for row in report.rows
    ]
    return _plain(
        {
            "title": report.title,
            "config": source.config,
            "data": {"name": source.data, "fingerprint": source.fingerprint},
            "quantiser": source.quantiser,
            "features": source.features,
            "evaluation": {"samples": source.num, "seeds": list(source.seeds)},
            "steps": source.steps,
            "seconds": source.seconds,
            "remarks": list(source.remarks),
            "results": values,
            "versions": versions(),
            "device": device(),
            **source.more,
        }
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a source tree that was not installed
            found[package] = "not installed"
    return found


def device() -> dict[str, Any]:
    """Platform, kind and number of the devices of all processes."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "host": platform.processor() or platform.machine(),
    }


def markdown(report: Report) -> str:
    """The text of report.md."""
    source = report.provenance
    seeds = "mean ± standard deviation over sampling seeds " if source.seeds[1:] else "sampling seed "
    if any(row.least for row in report.rows):
        seeds = "the minimum of the repeats, and in brackets the mean ± standard deviation over sampling seeds "
    seeds += ", ".join(map(str, source.seeds))
    nets = [f"{column}: {about['net']} {about['sha256'][:12]}".strip()
            for column, about in source.features.items()]  # fmt: skip
    seconds = ", ".join(f"{what} {value:.0f} s" for what, value in source.seconds.items())
    steps = ", ".join(f"{name} {count}" for name, count in source.steps.items())
    hardware = device()
    lines = [
        f"# {report.title}",
        "",
        *summary(report),
        "",
        *table(report),
        "",
        f"{source.num} samples a row, {seeds}. "
        "Smaller is better for distances and errors; NFE are network calls per image.",
        "",
        "![Distances by network calls, training curves and samples](report.png)",
        "",
        *(["![The conditions, and what became of them](conditions.png)", ""] if report.conditions else []),
        f"- Data: {source.data}, fingerprint {source.fingerprint[:12]}. {source.quantiser}",
        *([f"- Features, with the sha256 of their weights: {', '.join(nets)}."] if nets else []),
        f"- Training steps: {steps}. Wall time: {seconds}.",
        *(f"- {remark}" for remark in source.remarks),
        f"- {hardware['count']} x {hardware['kind']} ({hardware['platform']}); "
        + ", ".join(f"{name} {version}" for name, version in versions().items()),
        "",
    ]
    return "\n".join(lines)


def summary(report: Report) -> list[str]:
    """A sentence for each trained row: cost and distances, and as multiples of the best teacher's.

    Without a trained row, the sentence is about the best teacher.
    """
    teacher = results.best_teacher(report.rows)
    rows = results.of_kind(report.rows, TRAINED) or ([teacher] if teacher else [])
    return [f"**{row.family}, {row.nfe} NFE**: {_headline(report, row, teacher)}." for row in rows]


def _headline(report: Report, row: Row, teacher: Row | None) -> str:
    parts = []
    for column in report.headline:
        value = _result(row, column)
        text = f"{heading(column)} {number(value)}"
        if teacher and row is not teacher and (other := _result(teacher, column)) > 0:
            text += f", {value / other:.1f} x that of {teacher.family} at {teacher.nfe} NFE"
        parts.append(text)
    return "; ".join(parts)


def _result(row: Row, column: str) -> float:
    """The minimum over repeats where that is the result, else the mean."""
    return row.least.get(column, row.values[column][0])


def table(report: Report) -> list[str]:
    """The lines of a Markdown table: references first, then what was trained, then the teacher."""
    named = itertools.chain(report.headline, *(row.values for row in report.rows))
    columns = list(dict.fromkeys(named))
    heads = ["sampler", "NFE", *map(heading, columns), "ms/image"]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for row in sorted(report.rows, key=lambda row: (row.kind != REFERENCE, row.kind != TRAINED)):
        name = f"**{row.name}**" if row.kind == TRAINED else row.name
        cells = [_cell(row, column) for column in columns]
        speed = "" if row.ms_per_image is None else number(row.ms_per_image)
        lines.append(_line([name, "" if row.nfe is None else str(row.nfe), *cells, speed]))
    return lines


def _cell(row: Row, column: str) -> str:
    """ "1.97 (1.99 ± 0.02)" where the minimum is the result."""
    if column not in row.values:
        return ""
    text = spread(*row.values[column])
    return f"{number(row.least[column])} ({text})" if column in row.least else text


def spread(mean: float, deviation: float) -> str:
    """ "0.104 ± 0.003": three digits of the mean; the deviation to its decimals, unless zero."""
    text = number(mean)
    if not deviation > 0:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± " + (f"{deviation:.1g}" if "e" in text else f"{deviation:.{decimals}f}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(value: Any) -> Any:
    """JSON values only: numpy scalars as numbers, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
