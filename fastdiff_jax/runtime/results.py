"""What an evaluation found, as plain data: the rows of a table, and where they come from."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TRAINED, TEACHER, REFERENCE = "trained", "teacher", "reference"

HEADINGS = {  # of columns that a reader cannot guess; the others are shown by their names
    "px": "FD of pixels (px)",
    "ft": "FD of features (ft)",
    "nn": "distance to nearest training image",
    "fd": "FD",
    "psnr": "PSNR (dB)",
    "psnr_masked": "PSNR where repainted (dB)",
    "psnr_known": "PSNR where given (dB)",
    "psnr_low": "PSNR of block means (dB)",
    "edge_f1": "F1 of edges",
    "similarity": "similarity to the reference",
    "similarity_class": "similarity to another of its class",
    "similarity_shuffled": "similarity to any other",
    "feature_distance": "feature distance from the original",
    "mmd2_rbf": "MMD² (RBF)",
}


def natural(name: str) -> list:
    """Sort key by which numbers in names are numbers; a ConfigDict has its keys in the order of letters."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


class Row(NamedTuple):
    """One line of the table: a sampler, or a reference that nothing was sampled for."""

    name: str  # "heun 35", "student", "real against real"
    values: Mapping[str, tuple[float, float]]  # column -> mean and standard deviation over seeds
    kind: str = TEACHER  # TRAINED: what this run made; TEACHER: training-free; REFERENCE: real data
    nfe: int | None = None  # network calls per image
    ms_per_image: float | None = None
    samples: np.ndarray | None = None  # stored values: uint8 (N,H,W,C), or points (N,d)
    labels: np.ndarray | None = None  # (N,); None when unconditional
    least: Mapping[str, float] = {}  # column -> minimum over the repeats, where that is the result

    @property
    def family(self) -> str:
        """The name without its cost: "heun" for "heun 35"."""
        return self.name.removesuffix(f" {self.nfe}")


class Provenance(NamedTuple):
    """Where the numbers come from; a number without it compares with nothing."""

    config: str  # reference of the config, "sid_digits:smoke"
    data: str
    fingerprint: str  # of the stored values
    features: Mapping[str, Mapping[str, str]]  # column -> {"net": name, "sha256": of its weights}
    num: int  # samples a row
    seeds: Sequence[int]  # of sampling
    quantiser: str  # how generated values became stored ones, in words
    steps: Mapping[str, int]  # experiment -> training steps
    seconds: Mapping[str, float]  # "training", "evaluation" -> wall seconds
    more: Mapping[str, Any] = {}
    remarks: Sequence[str] = ()  # of the method on its training


class Report(NamedTuple):
    """An evaluation, ready to be written."""

    title: str
    rows: Sequence[Row]
    headline: Sequence[str]  # columns that the figure shows, best first; smaller is better
    provenance: Provenance
    real: np.ndarray  # stored values of the data: uint8 (N,H,W,C), or points (N,d)
    real_labels: np.ndarray | None = None
    mixture: Mapping[str, np.ndarray] | None = (
        None  # of known data: weights, means (K,d), scales (K,)
    )
    curves: Mapping[str, Path] = {}  # experiment -> its metrics.jsonl
    conditions: Mapping[str, np.ndarray] = {}  # of a task: what the same images (N,H,W,C) are, stored, by name


def heading(column: str) -> str:
    """What a column is called in tables and figures."""
    return HEADINGS.get(column, column.replace("_", " "))


def number(value: float) -> str:
    """Three digits; powers of ten only where decimals would be many."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    """The rows of one kind, in order."""
    return [row for row in rows if row.kind == kind]


def best_teacher(rows: Sequence[Row]) -> Row | None:
    """The training-free row with the most calls, which a student is compared with."""
    return max(of_kind(rows, TEACHER), key=lambda row: row.nfe or 0, default=None)
