"""Weight trees: copies, counts, averages and names."""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Adapter, Array, PyTree

CONSTANTS = ("freqs",)  # leaves that no gradient reaches: frequencies of a random embedding


def copy(tree: PyTree) -> PyTree:
    """Fresh buffers: a donated step deletes its inputs, so aliases such as ema = params die with it."""
    return jax.tree.map(jnp.copy, tree)


# The adapter of a student that has none: all its weights are trained, from a copy of the base on.
FULL = Adapter(lambda key, base: copy(base), lambda base, trainable: trainable)


def count(tree: PyTree) -> int:
    """Number of scalars in the leaves; works on shapes (`jax.eval_shape`) as well."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def parameters(tree: PyTree) -> int:
    """`count` of what is trained: without the constants that weights come with."""
    constants = (leaf for path, leaf in named(tree) if path.rpartition("/")[2] in CONSTANTS)
    return count(tree) - sum(count(leaf) for leaf in constants)


def nbytes(tree: PyTree) -> int:
    """Bytes in the leaves; works on shapes as well."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def ema(average: PyTree, latest: PyTree, beta: Array) -> PyTree:
    """average <- latest + beta (average - latest): leaves that never move stay equal to the bit."""
    return jax.tree.map(lambda a, p: p + beta.astype(p.dtype) * (a - p), average, latest)


def half_life_beta(images: Array, batch: int, half_life: float, ramp: float | None) -> Array:
    """EMA decay of one step of `batch` images.

        beta = 0.5^(batch / max(h, 1e-8)),    h = min(half_life, ramp * images)

    Args:
      images: () images seen BEFORE the step, floating; the first step of a ramp has beta = 0.
      half_life: in images.
      ramp: share of the images seen so far that caps the half-life; None for no cap.
    Source: Karras et al. 2022 (arXiv:2206.00364), training loop.
    """
    capped = half_life if ramp is None else jnp.minimum(half_life, ramp * images)
    return 0.5 ** (batch / jnp.maximum(capped, 1e-8))


def images_seen(step: Array, batch: int, start: float = 0.0) -> Array:
    """() images seen before step number `step`, in floating point.

    The counter is the integer step, so 2.5e9 images do not overflow it; float32 holds their number to
    6e-8 relative, far below what learning-rate and EMA ramps can tell apart.
    """
    return start + jnp.asarray(step).astype(jnp.result_type(float)) * batch


def check_fits(tree: PyTree, template: PyTree, owner: str) -> None:
    """Raises ValueError naming a leaf, if `tree` has not the paths and shapes of `owner`'s weights."""
    given, wanted = ({path: leaf.shape for path, leaf in named(t)} for t in (tree, template))
    for path in [*wanted, *given]:
        if given.get(path) != wanted.get(path):
            raise ValueError(
                f"the weights to start from do not fit the {owner}: its {path} is "
                f"{wanted.get(path, 'missing')}, theirs {given.get(path, 'missing')}; start from a run of "
                "the same network (config.teacher, config.init_from)."
            )


def grafted(tree: PyTree, template: PyTree) -> PyTree:
    """`template` with the leaves of `tree` where it has them: nested dicts, no path of `tree` is its own."""
    if not isinstance(template, Mapping):
        return tree
    return {
        name: grafted(tree[name], part) if name in tree else part for name, part in template.items()
    }


def named(tree: PyTree) -> Iterator[tuple[str, PyTree]]:
    """Pairs (path, leaf) with paths like `enc/8x8_block0/conv0/kernel`, in the tree's own order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield name(path), leaf


def name(path: tuple) -> str:
    """The path of a leaf, as jax's functions with paths give it, in the form of `named`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
