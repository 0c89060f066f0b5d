"""Modules by name: a config names a module, so a new method, network or data set is one new file."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def known(folder: str) -> list[str]:
    """Names of the modules in `fastdiff_jax/<folder>/`."""
    package = importlib.import_module(f"fastdiff_jax.{folder}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(folder: str, name: str, attribute: str = "build") -> Any:
    """The `build` (or another attribute) of `fastdiff_jax/<folder>/<name>.py`.

    Raises: ValueError naming the known modules, if there is no such module or it exports no such thing.
    """
    names = known(folder)
    if (found := optional(folder, name, attribute)) is not None:
        return found
    # The others are imported only to say which would have done.
    fitting = [other for other in names if hasattr(_module(folder, other), attribute)]
    raise ValueError(f"{folder} has no {name!r}; known: {', '.join(fitting)}.")


def optional(folder: str, name: str, attribute: str) -> Any | None:
    """`load` of what a module may have or not; None if it has not, or is not there."""
    return getattr(_module(folder, name), attribute, None) if name in known(folder) else None


def entries(folder: str, attribute: str) -> dict[str, Any]:
    """The union of a dict attribute over a folder's modules, such as SOLVERS of solvers/.

    Raises: ValueError if two modules claim one name.
    """
    found: dict[str, Any] = {}
    for module in known(folder):
        for name, value in getattr(_module(folder, module), attribute, {}).items():
            if name in found:
                raise ValueError(f"{folder}: the name {name!r} is claimed twice, last by {module}.py.")
            found[name] = value
    return found


def choose(table: Mapping[str, Callable], config: Mapping[str, Any], kind: str) -> Any:
    """table[config["name"]] called with the config's other entries.

    Raises: ValueError naming what is known, for an unknown name or an argument that is not taken.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in table:
        raise ValueError(f"no {kind} {name!r}; known: {', '.join(table)}.")
    taken = inspect.signature(table[name]).parameters
    unknown = sorted(set(arguments) - set(taken))
    if unknown:
        raise ValueError(
            f"{kind} {name} has no option {', '.join(map(repr, unknown))}; known: {', '.join(taken)}."
        )
    return table[name](**arguments)


def options(kind: type, given: Mapping[str, Any], owner: str) -> Any:
    """A NamedTuple of settings, from its defaults and a config section; the section's `name` is no setting.

    Raises: ValueError naming the known settings, if the section has others or lacks one without default.
    """
    given = {key: value for key, value in given.items() if key != "name"}
    unknown = sorted(set(given) - set(kind._fields))
    if unknown:
        raise ValueError(f"{owner} has no setting {', '.join(unknown)}; known: {', '.join(kind._fields)}.")
    missing = [key for key in kind._fields if key not in given and key not in kind._field_defaults]
    if missing:
        raise ValueError(f"{owner} needs the setting {', '.join(missing)}; the config gives no value.")
    return kind(**given)


def _module(folder: str, name: str) -> ModuleType:
    return importlib.import_module(f"fastdiff_jax.{folder}.{name}")
