"""Samples by image index: they depend on seed and index, on neither batch nor devices."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fastdiff_jax import conditioning, rng
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.types import Array, Data, Draws, Frozen, Keys, Params, Sampler, Task


class Generator(NamedTuple):
    """One compiled batch of a sampler."""

    # (seed, indices (B,), labels (B,), and for a task the images (B,...) that its conditions are of) -> (B,...)
    batch: Callable[..., np.ndarray]
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
    task: Task | None = None,
    shape: tuple[int, ...] = (),
) -> Generator:
    """Compiles a sampler for one batch size; every call is padded to it.

    The last bits of a network's output depend on the batch size, so images that must depend on seed and index
    only are always made in batches of the same one.

    Args:
      programs: compiled ones of the same model, by structure: one that fits is used, a new one is added.
        Samplers that carry their numbers as a `jax.tree_util.Partial` share theirs.
      task, shape: conditions besides the label, made of images of this shape that every call is given.
    """
    meshes.check_divides(batch_size, mesh, "evaluation.batch_size")
    rows, whole = meshes.rows(mesh), meshes.whole(mesh)
    numbers = [jax.ShapeDtypeStruct((), jnp.int32), *(jax.ShapeDtypeStruct((batch_size,), jnp.int32),) * 2]
    if task is not None:
        numbers.append(jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32))
    places = (whole, *(rows,) * (len(numbers) - 1))
    generate = sampler.generate
    if not isinstance(generate, jax.tree_util.Partial):
        generate = jax.tree_util.Partial(generate)
    programs, leaves = {} if programs is None else programs, jax.tree.leaves(generate)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    key = (jax.tree.structure(generate), shapes, classes, batch_size, mesh, task, shape)
    seconds = 0.0
    if key not in programs:
        # Weights keep the layout that they have; the images come back whole on every host.
        shardings = dict(in_shardings=(whole, None, None, *places), out_shardings=whole)
        run = jax.jit(functools.partial(_run, classes, task), **shardings)
        begun = time.perf_counter()
        programs[key] = run.lower(generate, params, frozen, *numbers).compile()
        seconds = time.perf_counter() - begun
    compiled, generate = programs[key], jax.device_put(generate, whole)

    def batch(*values):  # every host has all of them, and places its part
        made = [np.asarray(value, number.dtype) for value, number in zip(values, numbers, strict=True)]
        placed = [jax.make_array_from_callback(v.shape, at, v.__getitem__) for v, at in zip(made, places)]
        return np.asarray(compiled(generate, params, frozen, *placed))

    return Generator(batch, batch_size, seconds)


def _run(classes, task, generate, params, frozen, seed, indices, labels, *images):
    keys = rng.image_keys(rng.root(seed, "sample"), indices)
    batch, draws = {"label": labels}, {}
    if task is not None:
        (batch["image"],) = images
        draws = drawn(task, keys, batch["image"])
    cond = conditioning.conditions(np.zeros(classes) if classes else None, task, batch, draws, frozen)
    return generate(params, frozen, keys, cond)


def drawn(task: Task, keys: Keys, images: Array) -> Draws:
    """The random numbers of a task by image: each from the stream "task" of its own key."""

    def one(key, image):
        return task.draw(rng.stream(key, "task"), {"image": image[None]})

    return jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(one)(keys, images))


def images(
    generator: Generator,
    seed: int,
    labels: np.ndarray,
    encode: Callable,
    tick: Callable = lambda: None,
    first: int = 0,
    given: np.ndarray | None = None,
):
    """Encoded images number first..first+num-1 of a seed, and the seconds that they took.

    Args:
      labels: (num,) one label an image; ignored by unconditional samplers.
      tick: called after every batch.
      given: (num,...) for a task: the images that its conditions are of, in model units.
    Returns: (stored values (num,...), seconds per image).
    """
    num, size, made, seconds = len(labels), generator.batch_size, [], 0.0
    for start in range(0, num, size):
        indices = np.arange(first + start, first + start + size)
        told = [labels] if given is None else [labels, given]
        told = [_padded(values[start : start + size], size) for values in told]
        begun = time.perf_counter()
        values = generator.batch(seed, indices, *told)
        seconds += time.perf_counter() - begun
        made.append(encode(values))
        tick()
    return np.concatenate(made)[:num], seconds / (len(made) * size)


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """`size` rows: those of `values` over and over."""
    return np.resize(values, (size, *values.shape[1:]))
