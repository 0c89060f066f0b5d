"""What the training of a one-step generator against a fake score has, whatever its loss."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import conditioning, trees
from fastdiff_jax.losses import accumulation
from fastdiff_jax.losses.matching import Objective
from fastdiff_jax.precond import denoiser
from fastdiff_jax.rng import stream
from fastdiff_jax.types import Array, Cond, Denoiser, Frozen, Key, Model, Params, PyTree


def generated(
    model: Model, params: Params, latents: Array, sigma_init: float, cond: Cond, dropout=None
) -> Array:
    """Images of a one-step generator, G(z) = D(sigma_init z; sigma_init): one call of a denoiser (B,...)."""
    return denoiser(model, params, cond, dropout)(sigma_init * latents, sigma_init)


def condition(labels: np.ndarray | None, part: Mapping[str, Array]) -> Cond:
    """The condition of a batch part: its labels as one-hot rows; {} if `labels`, the class shares, is None."""
    return conditioning.conditions(labels, None, part, {}, {})


def draws_of(key: Key, shape, noise_draws: Callable[[Key], Mapping], labels: np.ndarray | None) -> dict:
    """Latents, label, dropout key and what `noise_draws(key)` adds, for one update of a batch (B,...)."""
    draws = {
        "latents": jax.random.normal(stream(key, "latents"), shape),
        "dropout": stream(key, "dropout"),
    }
    if labels is not None:
        shares = jnp.log(labels)
        draws["label"] = jax.random.categorical(stream(key, "label"), shares, shape=shape[:1])
    return draws | noise_draws(key)


def fake_loss(denoise: Denoiser, x: Array, draws: Mapping[str, Array], objective: Objective) -> Array:
    """(B,...) denoising loss on generated images x, which stay fixed; NaN samples count zero."""
    return objective.loss(denoise, jax.lax.stop_gradient(x), draws, guard=True)


def start(models: Mapping[str, Model], frozen: Frozen, shape: tuple[int, ...], labels, key: Key,
          roles: Mapping[str, str]) -> dict[str, Params]:  # fmt: skip
    """What the networks of `roles` begin as, in fresh buffers.

    Args:
      roles: role -> name of the tree in `frozen`; "initial" stands for the teacher's if there is none.
    Raises: ValueError naming a leaf, for weights that do not fit.
    """
    found = {}
    for role, source in roles.items():
        weights = frozen.get(source, frozen["teacher"])
        inputs = jnp.zeros((1, *shape)), condition(labels, {"label": jnp.zeros(1, jnp.int32)})
        trees.check_fits(weights, jax.eval_shape(models[role].network.init, key, *inputs), role)
        found[role] = trees.copy(weights)
    return found


def descend(
    tx, loss: Callable, params: Params, opt: PyTree, draws: Mapping[str, Array], rounds: int, images: Array
) -> tuple[Params, PyTree, dict]:
    """One optimizer update on a batch of draws, in accumulation rounds: (params, optimizer state, metrics).

    Args:
      tx: an optax transformation that takes extra arguments; rates follow its `images_seen`, not its count of
        updates, of which an iteration may make several, or none.
      loss: as `accumulation.value_and_grad` takes it.
      draws: with a "dropout" key, which has no batch axis to slice.
      images: () seen before this iteration.
    """
    samples = {name: value for name, value in draws.items() if name != "dropout"}
    metrics, grads = accumulation.value_and_grad(loss, params, samples, draws["dropout"], rounds)
    updates, opt = tx.update(grads, opt, params, images_seen=images)
    params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
    return params, opt, metrics
