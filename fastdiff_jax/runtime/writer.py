"""Where metrics go: metrics.jsonl always, TensorBoard and Weights & Biases if the config asks."""

import importlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fastdiff_jax.runtime import files


class Jsonl:
    """One JSON object a line. No clock times: a resumed run's file equals an uninterrupted one's."""

    def __init__(self, workdir: Path, name: str, config: Mapping[str, Any]):
        del name, config
        self.path, self._file = Path(workdir) / "metrics.jsonl", None

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`, and a last line that a kill has cut short; appends from there."""
        kept = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        files.write(self.path, "".join(kept).encode())
        self._file = open(self.path, "a")  # noqa: SIM115

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step} | finite | {"step": step}) + "\n")
        self._file.flush()  # before the checkpoint of this step, so that no saved step lacks its row

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Tensorboard:
    """Event files in workdir/tensorboard, through tensorboardX."""

    def __init__(self, workdir: Path, name: str, config: Mapping[str, Any]):
        del name, config
        self._module = _extra("tensorboardX", "tensorboard")
        self._folder, self._events = str(Path(workdir) / "tensorboard"), None

    def rewind(self, step: int) -> None:
        self._events = self._module.SummaryWriter(self._folder, purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class Wandb:
    """A Weights & Biases run, continued by a resumed one; WANDB_MODE, WANDB_PROJECT are the user's."""

    def __init__(self, workdir: Path, name: str, config: Mapping[str, Any]):
        self._module = _extra("wandb", "wandb")
        self._workdir, self._name, self._config, self._run = Path(workdir), name, dict(config), None

    def rewind(self, step: int) -> None:
        kept = self._workdir / "wandb_id.json"
        identity = files.read_json(kept) or uuid.uuid4().hex[:8]
        files.write_json(kept, identity)
        self._run = self._module.init(
            id=identity, name=self._name, config=self._config, dir=str(self._workdir), resume="allow"
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


BACKENDS = {"jsonl": Jsonl, "tensorboard": Tensorboard, "wandb": Wandb}


class Writer:
    """All backends of a run as one; only process 0 writes.

    Args:
      backends: names out of BACKENDS; jsonl is always among them.
    Raises: ValueError for an unknown name, or a backend whose package is not installed.
    """

    def __init__(self, workdir: Path, backends: Sequence[str] = (), *, name: str = "",
                 config: Mapping[str, Any] = {}):  # fmt: skip
        if unknown := [backend for backend in backends if backend not in BACKENDS]:
            raise ValueError(f"no metrics writer {unknown[0]!r}; known: {', '.join(BACKENDS)}.")
        chosen = dict.fromkeys(("jsonl", *backends)) if jax.process_index() == 0 else ()
        self._backends = [BACKENDS[backend](workdir, name, config) for backend in chosen]

    def rewind(self, step: int) -> None:
        """Opens for writing after `step`, and forgets what was written beyond it."""
        for backend in self._backends:
            backend.rewind(step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of host floats."""
        for backend in self._backends:
            backend.write(step, metrics)

    def close(self) -> None:
        """Flushes and closes; safe if nothing was opened."""
        for backend in self._backends:
            backend.close()


def _extra(package: str, extra: str):
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"train.writers asks for {extra!r}, but {package} is not installed; "
            f"install it with `pip install fastdiff_jax[{extra}]`, or take {extra!r} out."
        ) from None
