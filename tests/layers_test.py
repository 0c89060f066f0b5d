"""Who may import whom, read off the source: each layer knows only those below it."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a part of the package may import of the package, besides itself.
CORE = {"types", "trees", "averages", "rng", "registry", "messages", "zips"}
WAIST = CORE | {"processes", "precond", "guidance", "conditioning"}
PARTS = {
    **dict.fromkeys(CORE, CORE),
    **dict.fromkeys(("processes", "networks", "data"), CORE),
    **dict.fromkeys(("precond", "guidance", "conditioning"), WAIST),
    **dict.fromkeys(("solvers", "losses"), WAIST),
    "methods": WAIST | {"solvers", "losses"},
    "interop": CORE | {"networks"},
    "metrics": CORE | {"networks", "interop"},
    "tasks": CORE | {"metrics"},
    "runtime": WAIST
    | {"networks", "data", "solvers", "losses", "methods", "metrics", "tasks", "interop"},
    "launch": {"runtime"},
    "configs": set(),
}

# Libraries that only some parts may import; all others are free to all parts but CORE.
LIBRARIES = {
    "flax": {"networks"},
    "optax": {"methods", "runtime"},
    "orbax": {"runtime"},
    "tqdm": {"runtime"},
    "absl": {"runtime", "launch"},
    "ml_collections": {"runtime", "launch", "configs"},
    "matplotlib": {"runtime"},
    **dict.fromkeys(("tensorflow", "torch", "clu", "pytest"), set()),
}
ALONE = {**dict.fromkeys(CORE, {"jax", "numpy"}), "configs": {"ml_collections"}}


def module_of(path: Path) -> str:
    """Dotted name of a source file: fastdiff_jax.solvers.heun, launch.main, configs.sid_digits."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, module: str) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def part_of(module: str) -> str:
    """The unit of PARTS that a module belongs to: solvers for fastdiff_jax.solvers.heun."""
    names = module.split(".")
    return names[1] if names[0] == "fastdiff_jax" and len(names) > 1 else names[0]


def forbidden(name: str, module: str) -> str | None:
    """What is wrong with `module` importing `name`, or None."""
    top, part, own = name.partition(".")[0], part_of(module), part_of(name)
    if part == "configs":
        allowed = top == "ml_collections" or name.startswith("configs.common")
        return None if allowed else "configs import ml_collections and configs.common only"
    if top == "fastdiff_jax":
        if part == own == "methods":
            return "no method imports another"
        return None if own == part or own in PARTS[part] else f"{part} must not know {own}"
    if part in ALONE and top not in ALONE[part] | sys.stdlib_module_names:
        return f"{part} needs only {', '.join(sorted(ALONE[part]))}"
    if part not in LIBRARIES.get(top, {part}):
        return f"{top} belongs to {', '.join(sorted(LIBRARIES[top])) or 'no part'}"
    if top in ("configs", "launch", "tests"):
        return f"{top} is above {part}"
    return None


def violations(source: str, module: str) -> list[str]:
    """Every forbidden import of a source text, as `module:line imports name: reason`."""
    found = [(line, name, forbidden(name, module)) for line, name in imports(source, module)]
    return [f"{module}:{line} imports {name}: {reason}" for line, name, reason in found if reason]


def sources() -> list[Path]:
    """All Python files that the rules are about."""
    folders = [ROOT / name for name in ("fastdiff_jax", "launch", "configs")]
    return [path for folder in folders for path in folder.rglob("*.py")]


def test_imports_point_down():
    files = sources()
    assert len(files) > 40
    found = [bad for path in files for bad in violations(path.read_text(), module_of(path))]
    assert not found, "\n".join(found)


def test_every_part_has_a_rule():
    parts = {part_of(module_of(path)) for path in sources()} - {"fastdiff_jax"}
    assert parts <= set(PARTS), f"no rule for {sorted(parts - set(PARTS))}; add them to PARTS."


@pytest.mark.parametrize(
    "module,source,reason",
    [
        ("solvers.heun", "from fastdiff_jax.networks import mlp", "solvers must not know networks"),
        ("solvers.heun", "from fastdiff_jax import losses", "solvers must not know losses"),
        ("losses.matching", "import fastdiff_jax.runtime.loop", "losses must not know runtime"),
        ("losses.matching", "import optax", "optax belongs to methods, runtime"),
        ("methods.sid", "from fastdiff_jax.methods import teacher", "no method imports another"),
        ("methods.sid", "from .teacher import build", "no method imports another"),
        ("methods.sid", "import flax.linen as nn", "flax belongs to networks"),
        ("tasks.edges", "from fastdiff_jax.networks import song", "tasks must not know networks"),
        ("data.digits", "def f():\n    from tqdm import tqdm", "tqdm belongs to runtime"),
        ("data.tfds", "import tensorflow as tf", "tensorflow belongs to no part"),
        ("data.tfds", "from configs import common", "configs is above data"),
        ("metrics.frechet", "from orbax import checkpoint", "orbax belongs to runtime"),
        ("trees", "import scipy", "trees needs only jax, numpy"),
        ("types", "from fastdiff_jax.precond import edm", "types must not know precond"),
        ("precond", "from fastdiff_jax import losses", "precond must not know losses"),
        ("launch.main", "from fastdiff_jax.methods import sid", "launch must not know methods"),
        ("configs.sid_digits", "import numpy", "configs import ml_collections"),
        ("configs.sid_digits", "from configs import edm_digits", "and configs.common only"),
    ],
)
def test_a_planted_violation_is_found(module, source, reason):
    (found,) = violations(source, full(module))
    assert reason in found


@pytest.mark.parametrize(
    "module,source",
    [
        ("solvers.heun", "import math\nfrom fastdiff_jax.solvers.driver import predict"),
        ("solvers.heun", "from fastdiff_jax import precond, types\nimport numpy as np"),
        ("methods.sid", "import optax\nfrom fastdiff_jax.losses import identity"),
        ("networks.song", "import flax.linen as nn\nfrom . import layers"),
        ("registry", "import importlib\nimport jax.numpy as jnp"),
        ("launch.main", "from absl import app\nfrom fastdiff_jax.runtime import loop"),
        ("configs.sid_digits", "from configs import common\nfrom ml_collections import ConfigDict"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(source, full(module)) == []


def full(module):
    return module if module.startswith(("launch.", "configs.")) else f"fastdiff_jax.{module}"
