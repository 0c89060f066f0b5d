"""Embeddings of the noise label c_noise (B,) into (B,channels)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Array


def positional(t: Array, channels: int, endpoint: bool = False, period: float = 10000.0) -> Array:
    """[cos(t w), sin(t w)] with w_i = period^(-i / (h - e)), i < h = channels / 2, e = 1 with `endpoint`.

    t (B,) -> (B,channels), in the dtype of `t`.
    """
    half = channels // 2
    exponents = np.arange(half) / (half - endpoint)
    return _waves(t, jnp.asarray(period**-exponents, t.dtype))


class Fourier(nn.Module):
    """[cos(2 pi t f), sin(2 pi t f)] with channels / 2 random frequencies f = scale N(0, 1).

    They are drawn once and kept in the tree as `freqs`, because a checkpoint is useless without them;
    no gradient reaches them.
    """

    channels: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, t: Array) -> Array:
        half = self.channels // 2
        freqs = self.param("freqs", lambda key: self.scale * jax.random.normal(key, (half,), jnp.float32))
        return _waves(t, 2 * np.pi * jax.lax.stop_gradient(freqs).astype(t.dtype))


def swap_halves(e: Array) -> Array:
    """[cos, sin] -> [sin, cos] along the last axis."""
    return jnp.roll(e, e.shape[-1] // 2, axis=-1)


def _waves(t, frequencies):
    angles = t[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
