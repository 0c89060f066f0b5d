"""The toy networks of the loss and training goldens: F = tanh(x W1 + b1 + c u) W2 + b2 on flat images."""

import jax.numpy as jnp

from fastdiff_jax import precond
from fastdiff_jax.networks import mlp
from fastdiff_jax.types import Model

LEAVES = ("W1", "b1", "u", "W2", "b2")


def parameters(golden, prefix: str) -> dict:
    """The recorded leaves `<prefix><leaf>` as a parameter tree of networks/mlp."""
    return {leaf: jnp.asarray(golden.input(prefix + leaf)) for leaf in LEAVES}


def model(params: dict, preconditioner: precond.Precond) -> Model:
    """The toy as a model of its recorded size."""
    size, hidden = params["W1"].shape
    return Model(mlp.build({"hidden": (hidden,)}, (size,)), preconditioner)


def check_tree(golden, prefix: str, tree: dict, **tolerance) -> None:
    """Checks every leaf of a parameter-shaped tree against `<prefix><leaf>`."""
    for leaf in LEAVES:
        golden.check(prefix + leaf, tree[leaf], **tolerance)
