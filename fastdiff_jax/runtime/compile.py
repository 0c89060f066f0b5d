"""From a method to compiled programs: one for its initial state, one per variant of its step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fastdiff_jax.runtime.mesh import rows, whole
from fastdiff_jax.types import Method, PyTree, State


def _strong(tree: PyTree) -> PyTree:
    """The same values without weak types: a restored state has none, and must run through the same program."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def _fresh(tree: PyTree) -> PyTree:
    # A state that shares buffers with itself or with `frozen` would die with them at the first donated step.
    return jax.tree.map(jnp.copy, _strong(tree))


def with_layout(shapes: PyTree, layout: PyTree) -> PyTree:
    """ShapeDtypeStructs that carry their shardings: what a checkpoint is restored into."""

    def outline(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(outline, shapes, layout)


def initial_state(method: Method, layout: PyTree, frozen_layout: PyTree,
                  mesh: Mesh) -> Callable[..., State]:  # fmt: skip
    """(key, frozen) -> state, born in its shardings; no buffer is shared, so every leaf may be donated."""

    def init(key, frozen):
        return _fresh(method.init(key, frozen))

    return jax.jit(init, in_shardings=(whole(mesh), frozen_layout), out_shardings=layout)


def train_step(method: Method, layout: PyTree, frozen_layout: PyTree, mesh: Mesh) -> Callable[..., tuple]:
    """step(state, frozen, batch, key, variant) -> (state, metrics): the same for every method.

    The state is donated: the caller's arrays are gone after the call. `variant` is static, one program each.
    Args:
      layout, frozen_layout: trees of shardings, see `mesh.shardings`.
    """

    def step(state, frozen, batch, key, variant):
        draws = method.draw(key, batch, variant)
        state, metrics = method.update(state, frozen, batch, draws, variant)
        return _strong(state), metrics

    return jax.jit(
        step,
        static_argnums=4,
        in_shardings=(layout, frozen_layout, rows(mesh), whole(mesh)),
        out_shardings=(layout, whole(mesh)),
        donate_argnums=0,
    )


def settled(layout: PyTree) -> Callable[[State], State]:
    """state -> the same values in fresh buffers and in their shardings, after host code has rearranged them."""
    return jax.jit(_fresh, out_shardings=layout)
