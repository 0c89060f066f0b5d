"""Self-attention over image positions, in the EDM networks' channel order."""

import math

import jax
import jax.numpy as jnp

from fastdiff_jax.types import Array


def self_attention(qkv: Array, heads: int) -> Array:
    """softmax(q k / sqrt(C / heads)) v over all H W positions.

    Args:
      qkv: (B,H,W,3C); channel (head C/heads + c) 3 + j holds q, k, v for j = 0, 1, 2: they interleave.
      heads: divides C.
    Returns: (B,H,W,C), head by head. Logits and softmax are in at least float32.
    """
    batch, height, width, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
    if channels % heads:
        raise ValueError(f"attention cannot split {channels} channels into {heads} heads.")
    split = qkv.reshape(batch, height * width, heads, channels // heads, 3)
    q, k, v = (split[..., j] for j in range(3))
    wide = jnp.promote_types(qkv.dtype, jnp.float32)
    k = k / math.sqrt(channels / heads)
    logits = jnp.einsum("bqhc,bkhc->bhqk", q.astype(wide), k.astype(wide))
    weights = jax.nn.softmax(logits, axis=-1).astype(qkv.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(batch, height, width, channels)
