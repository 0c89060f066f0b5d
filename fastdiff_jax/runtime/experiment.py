"""Experiments by name: config files, their work directories and the experiments that they build on."""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fastdiff_jax import messages
from fastdiff_jax.runtime import files

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


class Experiment(NamedTuple):
    """A config with the name that its work directory gets."""

    name: str  # "sid_digits", with an argument "sid_digits_smoke"
    config: ConfigDict
    workdir: Path


def split(reference: str) -> tuple[str, str | None]:
    """Path or stem, and argument, of "configs/edm_digits.py:smoke"."""
    path, colon, argument = reference.partition(":")
    return path, argument if colon else None


def folder(reference: str) -> Path | None:
    """The folder with finished weights that a reference names, None if it names a config.

    launch/convert.py writes such folders, and every finished run is one. A config of the repository goes first.
    """
    path = Path(reference)
    if path.suffix == ".py" or (CONFIGS / f"{split(reference)[0]}.py").is_file():
        return None
    return path if path.is_dir() else None


def name_of(reference: str) -> str:
    """The experiment's name: file stem, and the argument if there is one; of a folder its own."""
    if (found := folder(reference)) is not None:
        return found.resolve().name
    path, argument = split(reference)
    return Path(path).stem + (f"_{argument.replace(',', '_')}" if argument else "")


def known() -> list[str]:
    """Config stems of the repository."""
    return sorted(
        path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("common", "__init__")
    )


def workdir_of(reference: str, parent: Path) -> Path:
    """The work directory of an experiment: below `parent`, but that of finished weights is their folder."""
    found = folder(reference)
    return parent / name_of(reference) if found is None else found


def load(reference: str) -> ConfigDict:
    """The config of a file with get_config, named by path or by stem, with an optional argument.

    Of a folder with finished weights, it is the one that they were made with.

    Raises: ValueError if there is no such file or folder, or it does not make a config.
    """
    if (found := folder(reference)) is not None:
        return _saved(found)
    stem, argument = split(reference)
    path = Path(stem) if stem.endswith(".py") else CONFIGS / f"{stem}.py"
    if not path.is_absolute() and not path.exists():
        path = ROOT / path
    if not path.is_file():
        what = "config file" if "/" not in stem or stem.endswith(".py") else "config file or folder of weights"
        raise ValueError(f"there is no {what} {stem!r}; known: {', '.join(known())}.")
    if str(ROOT) not in sys.path:  # config files import configs.common
        sys.path.insert(0, str(ROOT))
    try:
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config() if argument is None else module.get_config(argument)
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a user's file raises, the answer is one line
        raise ValueError(f"config {reference} failed: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"config {reference}: get_config returned {type(config).__name__}, not a ConfigDict."
        )
    return config


def _saved(found: Path) -> ConfigDict:
    if not (found / "product.json").is_file() or not (found / "config.json").is_file():
        raise ValueError(
            f"{found} holds no finished weights (config.json and product.json); name a folder that "
            "launch/convert.py has written, a finished run, or a config."
        )
    config = files.read_json(found / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{found / 'config.json'} is damaged: it holds no config; convert or train it anew.")
    return from_json(config)


def from_json(saved: Mapping[str, Any]) -> ConfigDict:
    """The config that a document holds."""
    return ConfigDict(_tuples(saved))


def _tuples(value: Any) -> Any:
    """What JSON has made lists of."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def prerequisite(reference: str, workdir: Path) -> Experiment:
    """The experiment that one in `workdir` builds on; its own work directory is beside it, or named."""
    return Experiment(name_of(reference), load(reference), workdir_of(reference, workdir.parent))


def changed(reference: str, changes: Mapping[str, Any], workdir: Path) -> Experiment:
    """`prerequisite` with other settings, in a work directory of its own that names them.

    Args:
      changes: sections of keys, {"method": {"loss": "l2"}}; {} for the prerequisite itself.
    Raises: ValueError for a value of another type than the config's, and as `load`.
    """
    basis = prerequisite(reference, workdir)
    try:
        basis.config.update(ConfigDict(changes))
    except (TypeError, AttributeError) as error:  # the latter for a section in a value's place
        raise ValueError(
            f"{reference} cannot take the changes {dict(changes)}: a value is of another type "
            f"({messages.line(error)})."
        ) from error
    said = [f"{key}_{value}" for key, value in _leaves(changes)]
    name = "_".join([basis.name, *(re.sub(r"[^\w.-]+", "_", text) for text in said)])
    return basis._replace(name=name, workdir=basis.workdir.parent / name)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_writable(folder: Path, flag: str = "--workdir") -> None:
    """Raises ValueError, naming the flag, if the directory cannot be made or written; makes nothing."""
    there = folder.absolute()
    while not there.exists() and not there.is_symlink():
        there = there.parent
    problem = None
    if not there.is_dir():
        problem = f"{there} is not a directory"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} does not let this user write"
    if problem:
        raise ValueError(
            f"{folder} cannot be written ({problem}); choose another place with {flag}."
        )
