"""Random keys: named streams, one key per training step, one key per image.

Keys are never part of a state: they are folded from the seed and a number, so a resumed run draws what
an uninterrupted one draws, and an image depends on seed and index only.
"""

import zlib

import jax

from fastdiff_jax.types import Array, Key, Keys


def stream(key: Key, name: str) -> Key:
    """An independent key for each name (crc32 of it is folded in)."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def root(seed: int | Array, name: str) -> Key:
    """The key of one consumer ("train", "sample", "init") of a seed."""
    return stream(jax.random.key(seed), name)


def image_keys(key: Key, indices: Array) -> Keys:
    """(B,) keys for (B,) image indices: the same image whatever the batch it is drawn in."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def normal_per_image(keys: Keys, shape: tuple[int, ...], name: str = "latents") -> Array:
    """(B, *shape) standard normal, each row from its own key and the named stream."""
    return jax.vmap(lambda key: jax.random.normal(stream(key, name), shape))(keys)
