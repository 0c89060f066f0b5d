"""Samples by image index: they depend on seed and index, on neither batch nor devices."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fastdiff_jax import rng
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.types import Data, Frozen, Params, Sampler


class Generator(NamedTuple):
    """One compiled batch of a sampler."""

    batch: Callable[
        [int, np.ndarray, np.ndarray], np.ndarray
    ]  # (seed, indices (B,), labels (B,)) -> (B,...)
    batch_size: int
    compile_seconds: float  # zero if a program was there


def labels_of(data: Data, seed: int, num: int) -> np.ndarray:
    """(num,) labels by image index: seeded permutations of the reference set's, so its class shares are met."""
    order = np.random.default_rng(seed).permutation(data.reference["label"])
    return np.resize(order, num).astype(np.int32)


def generator(
    sampler: Sampler,
    params: Params,
    frozen: Frozen,
    classes: int,
    batch_size: int,
    mesh: Mesh,
    programs: dict | None = None,
) -> Generator:
    """Compiles a sampler for one batch size; every call is padded to it.

    The last bits of a network's output depend on the batch size, so images that must depend on seed and index
    only are always made in batches of the same one.

    Args:
      programs: compiled ones of the same model, by structure: one that fits is used, a new one is added.
        Samplers that carry their numbers as a `jax.tree_util.Partial` share theirs.
    """
    meshes.check_divides(batch_size, mesh, "evaluation.batch_size")
    rows, whole = meshes.rows(mesh), meshes.whole(mesh)
    numbers = (jax.ShapeDtypeStruct((), jnp.int32), *(jax.ShapeDtypeStruct((batch_size,), jnp.int32),) * 2)
    generate = sampler.generate
    if not isinstance(generate, jax.tree_util.Partial):
        generate = jax.tree_util.Partial(generate)
    programs, leaves = {} if programs is None else programs, jax.tree.leaves(generate)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    key = (jax.tree.structure(generate), shapes, classes, batch_size, mesh)
    seconds = 0.0
    if key not in programs:
        # Weights keep the layout that they have; the images come back whole on every host.
        shardings = dict(in_shardings=(whole, None, None, whole, rows, rows), out_shardings=whole)
        run = jax.jit(functools.partial(_run, classes), **shardings)
        begun = time.perf_counter()
        programs[key] = run.lower(generate, params, frozen, *numbers).compile()
        seconds = time.perf_counter() - begun
    compiled, generate = programs[key], jax.device_put(generate, whole)

    def batch(seed, indices, labels):
        arguments = placed(seed, whole), placed(indices, rows), placed(labels, rows)
        return np.asarray(compiled(generate, params, frozen, *arguments))

    def placed(values, sharding):
        values = np.asarray(values, np.int32)  # every host has all of them, and places its part
        return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    return Generator(batch, batch_size, seconds)


def _run(classes, generate, params, frozen, seed, indices, labels):
    key = rng.root(seed, "sample")
    cond = {"label": jax.nn.one_hot(labels, classes)} if classes else {}
    return generate(params, frozen, rng.image_keys(key, indices), cond)


def images(
    generator: Generator,
    seed: int,
    labels: np.ndarray,
    encode: Callable,
    tick: Callable = lambda: None,
    first: int = 0,
):
    """Encoded images number first..first+num-1 of a seed, and the seconds that they took.

    Args:
      labels: (num,) one label an image; ignored by unconditional samplers.
      tick: called after every batch.
    Returns: (stored values (num,...), seconds per image).
    """
    num, size, made, seconds = len(labels), generator.batch_size, [], 0.0
    for start in range(0, num, size):
        indices = np.arange(first + start, first + start + size)
        wanted = np.resize(labels[start : start + size], size)
        begun = time.perf_counter()
        values = generator.batch(seed, indices, wanted)
        seconds += time.perf_counter() - begun
        made.append(encode(values))
        tick()
    return np.concatenate(made)[:num], seconds / (len(made) * size)
