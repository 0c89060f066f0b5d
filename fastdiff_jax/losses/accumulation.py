"""Gradients of a large batch in several rounds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fastdiff_jax.types import Array, Params, PyTree


def value_and_grad(loss: Callable[..., tuple[Array, PyTree]], params: Params, samples: PyTree,
                   dropout=None, rounds: int = 1, unroll: bool | None = None):  # fmt: skip
    """Sums of loss auxiliaries and gradients over `rounds` slices of the batch.

    Args:
      loss: (params, samples of a slice, dropout key) -> (scalar, auxiliary tree). Both must be sums over
        samples already divided by the size of the whole batch, so that rounds add up to the full batch.
      samples: arrays with the batch as leading axis.
      unroll: one program text per round; by default on the CPU, where gradients in a rolled loop are 20 to
        40 times slower.
    Returns: (auxiliaries, gradients), as of one full-batch call, up to rounding.
    Raises: ValueError if the batch does not divide into rounds.
    """
    size = len(jax.tree.leaves(samples)[0])
    if rounds < 1 or size % rounds:
        raise ValueError(
            f"a batch of {size} does not divide into {rounds} accumulation rounds; use a divisor."
        )
    gradient = jax.grad(loss, has_aux=True)
    if rounds == 1:
        grads, aux = gradient(params, samples, dropout)
        return aux, grads

    def one(index, part):
        key = None if dropout is None else jax.random.fold_in(dropout, index)
        return gradient(params, part, key)

    # Strided slices, not blocks: each round then takes an equal share of every device's rows.
    parts = jax.tree.map(
        lambda a: a.reshape(size // rounds, rounds, *a.shape[1:]).swapaxes(0, 1), samples
    )
    if jax.default_backend() == "cpu" if unroll is None else unroll:
        results = [one(i, jax.tree.map(lambda a, i=i: a[i], parts)) for i in range(rounds)]
        grads, aux = jax.tree.map(lambda *leaves: sum(leaves), *results)
        return aux, grads
    shapes = jax.eval_shape(one, 0, jax.tree.map(lambda a: a[0], parts))
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total, here):
        return jax.tree.map(jnp.add, total, one(*here)), None

    (grads, aux), _ = jax.lax.scan(add, total, (jnp.arange(rounds), parts))
    return aux, grads
