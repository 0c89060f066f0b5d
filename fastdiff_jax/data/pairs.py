"""Recorded pairs: latents with the states that a teacher carried them through, for students that match these.

    folder/00000.safetensors   latents (n,...), states (n,S,...), label (n,), index (n,), and the header
    folder/pairs.json          {"header", "shards": [{"file", "rows", "sha256"}]}, written last

launch/record.py writes them. `index` and the header's seed are those of the images that samplers make of the
same latents; the latents are stored all the same, as random bits change with platforms and versions.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from fastdiff_jax import registry
from fastdiff_jax.types import Data

INDEX = "pairs.json"
KEY = "fastdiff_jax"  # one entry: safetensors keeps no order among several
FIELDS = ("latents", "states", "label", "index")


class Settings(NamedTuple):
    """Options of this data set."""

    source: Mapping  # section of the data that the teacher was trained on: what samples are measured against
    folder: str  # of the recording


class Recorded:
    """Random access to a recording. Nothing is read before it is asked for; then all of it stays in memory."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @functools.cached_property
    def contents(self) -> dict[str, Any]:
        """The document `pairs.json`. Raises: ValueError if there is none, or it is damaged."""
        path = self.folder / INDEX
        try:
            return json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"there is no finished recording in {self.folder} ({INDEX} is missing); make it with "
                "launch/record.py and the --config of the student that trains on it."
            ) from None
        except ValueError:
            raise ValueError(f"{path} is damaged: it is not JSON; {ADVICE}.") from None

    @property
    def header(self) -> dict[str, Any]:
        """How the rows were made, see `runtime.recorded`."""
        return self.contents["header"]

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All rows, (N,...) each. Raises: ValueError naming a file that is missing or has changed."""
        shards = []
        for entry in self.contents["shards"]:
            path = self.folder / entry["file"]
            content = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ValueError(f"{path} is missing or not the file that {INDEX} names; {ADVICE}.")
            shards.append(safetensors.numpy.load(content))
        return {key: np.concatenate([shard[key] for shard in shards]) for key in FIELDS}

    def __len__(self) -> int:
        return len(self.arrays["index"])

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows `indices` (B,): {"latents": (B,...), "states": (B,S,...), "label": (B,)}."""
        return {key: self.arrays[key][indices] for key in FIELDS if key != "index"}


ADVICE = "delete it and run launch/record.py again, which makes it anew"


def serialise(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> bytes:
    """One shard's file; equal rows, equal bytes."""
    rows = {key: np.ascontiguousarray(arrays[key]) for key in FIELDS}
    return safetensors.numpy.save(rows, {KEY: json.dumps(header, sort_keys=True)})


def described(path: Path) -> tuple[dict[str, Any], int]:
    """Header and number of rows of a shard. Raises: ValueError if it is none."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return json.loads(file.metadata()[KEY]), file.get_slice("index").get_shape()[0]
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no shard of a recording; {ADVICE}.") from None


def build(config) -> Data:
    """The data of the source, trained on a recording instead.

    Batches are {"latents", "states", "label"}. Files are opened once training asks for them, so a trained
    student can be sampled and measured without.

    Raises: ValueError for unknown settings, and as the source.
    """
    return _data(config, "build")


def outline(config) -> Data:
    """The shape and classes alone; nothing is read."""
    return _data(config, "outline")


def _data(config, how: str) -> Data:
    settings = registry.options(Settings, config, "data pairs")
    source = dict(settings.source)
    data = registry.load("data", source.pop("name"), how)(source)
    return data._replace(train=Recorded(Path(settings.folder)))
