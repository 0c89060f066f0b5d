"""What a denoiser is told of its images besides noise levels: all of it, and what of it can be hidden.

A condition is hidden where it is zero or its key is missing; guidance needs models that were trained with that.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Array, Batch, Cond, Draws, Frozen, Task, expand

LABEL = "label"


def conditions(
    labels: np.ndarray | None, task: Task | None, batch: Batch, draws: Draws, frozen: Frozen
) -> Cond:
    """All conditions of a batch: its labels as one-hot rows (B,K), and what the task makes of its images.

    Args:
      labels: (K,) class shares; None for a model without labels.
      draws: of the task, what `task.draw` made; unused without one.
    """
    found = {} if labels is None else {LABEL: jax.nn.one_hot(batch["label"], len(labels))}
    return found if task is None else found | dict(task.cond(batch, draws, frozen))


def guided(labels: np.ndarray | None, task: Task | None) -> tuple[str, ...]:
    """The conditions that dropout hides and guidance amplifies: the task's own choice, else the label."""
    names = (LABEL,) if task is None else tuple(task.guided)
    return tuple(name for name in names if name != LABEL or labels is not None)


def without(cond: Cond, names: Iterable[str]) -> Cond:
    """`cond` without these keys, where it has them: they are hidden from all images."""
    hidden = set(names)
    return {name: value for name, value in cond.items() if name not in hidden}


def kept(cond: Cond, keep: Array, names: Iterable[str]) -> Cond:
    """`cond` with these keys set to zero in the images where keep (B,) is False: they are hidden from them."""
    names = set(names)
    zeroed = lambda leaf: leaf * expand(keep, leaf)
    return {name: jax.tree.map(zeroed, value) if name in names else value for name, value in cond.items()}


def blank(
    labels: np.ndarray | None, task: Task | None, shape: tuple[int, ...], frozen: Frozen, size: int = 1
) -> Cond:
    """Zeros in the form of the conditions of `size` images of `shape`: what networks are initialised with."""

    def made(frozen):
        batch = {"image": jnp.zeros((size, *shape)), LABEL: jnp.zeros(size, jnp.int32)}
        draws = {} if task is None else task.draw(jax.random.key(0), batch)
        return conditions(labels, task, batch, draws, frozen)

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(made, frozen))
