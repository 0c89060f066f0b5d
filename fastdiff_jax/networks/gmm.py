"""Gaussian mixtures: an exact denoiser as a network, with the samples and moments to check against."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fastdiff_jax.networks.module import conditions, options, tapped
from fastdiff_jax.types import Array, Key, Network, Params, expand

DEFAULTS = dict(modes=8, radius=1.0, scale=0.1)


def build(config: Mapping, shape: tuple[int, ...], classes: int = 0) -> Network:
    """The posterior mean of a mixture sum_k w_k N(mu_k, s_k^2 I): what perfect training would reach.

        D(x; sigma) = sum_k r_k (s_k^2 x + sigma^2 mu_k) / (s_k^2 + sigma^2),
        r_k prop. to w_k N(x; mu_k, (s_k^2 + sigma^2) I)

    For the `identity` preconditioner: its c_noise is sigma, and the network is the denoiser. x (B,*shape)
    is flattened; the tree is weights (K), means (K,d), scales (K).

    Args:
      config: `modes` K, `radius` |mu_k|, `scale` s_k. `init` draws equal weights and means on the sphere
        of that radius: in two dimensions evenly spaced from a random angle, else independent.
    Returns: a network with tap "responsibilities": r (B,K).
    Raises: ValueError for unknown options, or classes: the mixture has no labels.
    """
    settings = options(config, DEFAULTS, "gmm")
    if classes:
        raise ValueError(f"network gmm has no labels, but the data has {classes} classes; drop them.")

    def init(key, x, cond=None):
        conditions(cond, ())
        modes, size = settings["modes"], math.prod(x.shape[1:])
        if size == 2:
            angles = 2 * jnp.pi * (jax.random.uniform(key) + jnp.arange(modes)) / modes
            directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
        else:
            directions = jax.random.normal(key, (modes, size))
            directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
        return {
            "weights": jnp.full(modes, 1 / modes),
            "means": settings["radius"] * directions,
            "scales": jnp.full(modes, float(settings["scale"])),
        }

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        del dropout  # there is nothing to drop
        conditions(cond, ())
        points, noise = x.reshape(x.shape[0], -1), jnp.square(c_noise)[:, None]
        shares = jax.nn.softmax(_log_joint(params, points, noise), axis=-1)
        own = jnp.square(params["scales"])
        total = own + noise
        linear = jnp.sum(shares * own / total, axis=-1, keepdims=True)
        output = linear * points + (shares * noise / total) @ params["means"]
        return tapped(output.reshape(x.shape), {"responsibilities": shares}, taps)

    return Network(init, apply)


def log_density(params: Params, x: Array, sigma: Array) -> Array:
    """log p(x; sigma) (B,) of the mixture plus sigma eps; x (B,d), sigma () or (B,)."""
    noise = jnp.broadcast_to(jnp.square(sigma), x.shape[:1])[:, None]
    return jax.nn.logsumexp(_log_joint(params, x, noise), axis=-1)


def sample(params: Params, key: Key, count: int) -> tuple[Array, Array]:
    """`count` points (count,d) and the modes (count,) that they come from."""
    key_mode, key_point = jax.random.split(key)
    modes = jax.random.categorical(key_mode, jnp.log(params["weights"]), shape=(count,))
    means = params["means"][modes]
    noise = jax.random.normal(key_point, means.shape, means.dtype)
    return means + expand(params["scales"][modes], noise) * noise, modes


def moments(params: Params) -> tuple[Array, Array]:
    """Mean (d,) and covariance (d,d) of the mixture."""
    weights, means = params["weights"], params["means"]
    mean = weights @ means
    centred = means - mean
    within = weights @ jnp.square(params["scales"])
    return mean, within * jnp.eye(len(mean), dtype=means.dtype) + (weights * centred.T) @ centred


def _log_joint(params, points, noise):
    """log (w_k N(x; mu_k, (s_k^2 + sigma^2) I)) (B,K), from points (B,d) and sigma^2 (B,1)."""
    variance = jnp.square(params["scales"]) + noise
    # Differences, not |x|^2 - 2 x.mu + |mu|^2, whose terms cancel at small sigma.
    distance = jnp.sum(jnp.square(points[:, None] - params["means"]), axis=-1)
    normaliser = points.shape[-1] / 2 * jnp.log(2 * jnp.pi * variance)
    return jnp.log(params["weights"]) - normaliser - distance / (2 * variance)
