"""Post-hoc averages of a run: which snapshots its training keeps, and weights of any width made of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fastdiff_jax import averages, registry
from fastdiff_jax.runtime import checkpoint
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.types import Params

DTYPES = ("float32", "float16")


class Options(NamedTuple):
    """config.train.posthoc: what training keeps so that an average's width can be chosen afterwards."""

    every: int  # steps between snapshots; EDM2: 8 Mi images. The last step has one as well
    sigma_rel: tuple[float, ...] = (0.05, 0.10)  # widths of the averages that are tracked
    dtype: str = "float32"  # of the files; EDM2: float16

    @property
    def gammas(self) -> list[float]:
        """Exponents of the averages."""
        return [averages.exponent(width) for width in self.sigma_rel]


def options(config: ConfigDict) -> Options | None:
    """What a config's training keeps; None if it keeps nothing. Raises: ValueError for impossible settings."""
    section = config.train.get("posthoc")
    if section is None:
        return None
    found = registry.options(Options, section, "config.train.posthoc")
    if not isinstance(found.every, int) or found.every < 1:
        raise ValueError(f"config.train.posthoc.every is a number of steps, 1 or more; got {found.every!r}.")
    widths = found.sigma_rel
    if not isinstance(widths, tuple | list) or not widths or len(set(widths)) < len(widths):
        raise ValueError(
            f"config.train.posthoc.sigma_rel lists different widths such as (0.05, 0.1); got {widths!r}."
        )
    if found.dtype not in DTYPES:
        raise ValueError(f"config.train.posthoc.dtype is {' or '.join(DTYPES)}; got {found.dtype!r}.")
    for width in widths:
        averages.exponent(width)  # refuses what no average has
    return found


def of(kept: Options | None) -> Callable[[averages.Tracked], Sequence[Params]] | None:
    """What a snapshot holds of a training state; None if none is kept."""
    if kept is None:
        return None

    def snapshot(state):
        return jax.tree.map(lambda leaf: leaf.astype(stored(leaf.dtype, kept)), list(state.averages))

    return snapshot


def check(config: ConfigDict) -> None:
    """Raises ValueError if the evaluation asks for widths that this run could not make."""
    kept = options(config)
    for width in config.evaluation.get("sigma_rel", ()):
        averages.exponent(width)
        if kept is None:
            raise ValueError(
                f"config.evaluation.sigma_rel asks for an average of width {width}, but this training keeps no "
                "snapshots; train with config.train.posthoc, such as the word posthoc of edm_digits sets it."
            )


def reconstructed(run: Experiment, like: Params, sigma_rel: float) -> Params:
    """The weights of a finished run, averaged with a width that need not have been tracked.

    Args:
      like: its product, whose shapes, dtypes and shardings the result has.
    Raises: ValueError for a width that no average has, and for snapshots that are missing or damaged.
    """
    kept, batch = options(run.config), run.config.train.batch_size
    target = averages.exponent(sigma_rel)
    last = checkpoint.product(run.workdir).step
    steps = [step for step in checkpoint.snapshots(run.workdir) if step <= last]
    if last not in steps:
        raise ValueError(
            f"{run.workdir} has no snapshot of its last step {last}, from which an average is made; restore "
            "the folder snapshots, or train in another --workdir."
        )
    times = np.repeat(np.array(steps, np.float64) * batch, len(kept.gammas))
    factors = averages.coefficients(times, np.tile(kept.gammas, len(steps)), float(last * batch), target)

    def outline(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, stored(leaf.dtype, kept), sharding=leaf.sharding)

    template = [jax.tree.map(outline, like)] * len(kept.gammas)
    each = (tree for step in steps for tree in checkpoint.load_snapshot(run.workdir, step, template))
    return jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), averages.combined(factors, each), like)


def stored(dtype, kept: Options):
    """The dtype of a leaf in a snapshot: only floating ones change."""
    return np.dtype(kept.dtype) if np.issubdtype(dtype, np.floating) else dtype
