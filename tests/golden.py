"""Golden files: recorded values that the package must reproduce, with an account of every key.

A replay is `tests/replays/<file stem>.py` with `replay(golden)`. It reads inputs by `golden.input(key)` and
compares by `golden.check(key, value)`. What it did neither to is unconsumed and fails the test.
"""

import json
from pathlib import Path

import numpy as np


class Golden:
    """One npz file and the account of its keys; `folder` is where fixtures that belong to it lie."""

    def __init__(self, path: Path):
        self.path, self.folder = path, path.parent
        with np.load(path, allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        self.inputs, self.checked, self.opened = set(), set(), set()

    def keys(self, prefix: str = "") -> list[str]:
        """Keys that start with `prefix`, in the file's order."""
        return [key for key in self.arrays if key.startswith(prefix)]

    def input(self, key: str) -> np.ndarray:
        """The array of a declared input."""
        self.inputs.add(key)
        return self.arrays[key]

    def config(self, key: str) -> dict:
        """A `cfg` string array as a dict."""
        return json.loads(str(self.input(key)))

    def fixture(self, name: str) -> Path:
        """The path of a file beside the npz; a replay names those that it reads in FIXTURES."""
        self.opened.add(name)
        return self.folder / name

    def check(self, key: str, value, *, rtol: float = 1e-9, atol: float = 0.0) -> None:
        """Asserts max |value - golden| <= rtol max|golden| + atol, and equal shapes and infinities.

        Strings are equal.
        """
        expected, value = self.arrays[key], np.asarray(value)
        assert value.shape == expected.shape, f"{key}: shape {value.shape}, golden {expected.shape}"
        if expected.dtype.kind == "U":
            differing = np.flatnonzero(value != expected)
            assert not differing.size, f"{key}: differs at {differing[:5]}, {value[differing[:5]]}"
            self.checked.add(key)
            return
        expected, value = expected.astype(np.float64), value.astype(np.float64)
        infinite = np.isinf(expected)
        assert np.array_equal(value[infinite], expected[infinite]), f"{key}: infinities differ"
        expected, value = expected[~infinite], value[~infinite]
        error = np.max(np.abs(value - expected), initial=0.0)
        bound = rtol * np.max(np.abs(expected), initial=0.0) + atol
        assert error <= bound, f"{key}: error {error:.3e} over the bound {bound:.3e}"
        self.checked.add(key)

    def unconsumed(self) -> list[str]:
        """Keys that were neither checked nor declared as inputs."""
        return [key for key in self.arrays if key not in self.inputs | self.checked]
