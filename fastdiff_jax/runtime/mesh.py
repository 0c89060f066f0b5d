"""Devices as a mesh with the axes data and fsdp, and where arrays lie on it.

The batch is split over both axes. Weights and optimizer state follow rules, pairs (regex over the path
of a leaf, spec): data-parallel training is the mesh (n, 1), fully sharded (1, n), hybrid (a, b).
"""

import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fastdiff_jax import trees
from fastdiff_jax.types import Batch, PyTree

Spec = P | Callable[[tuple[int, ...], int, Mesh], P]  # or (shape, bytes, mesh) -> P
Rules = Sequence[tuple[str, Spec]]


def largest(axis: str = "fsdp", above: int = 4 * 2**20) -> Spec:
    """Splits the largest divisible dimension of leaves of more than `above` bytes over `axis`."""

    def spec(shape, nbytes, mesh):
        size = mesh.shape[axis]
        divisible = [i for i, length in enumerate(shape) if length and length % size == 0]
        if size == 1 or nbytes <= above or not divisible:
            return P()
        chosen = max(divisible, key=shape.__getitem__)
        return P(*(axis if i == chosen else None for i in range(len(shape))))

    return spec


DEFAULT: Rules = ((r"", largest()),)


def make(sizes: Mapping[str, int]) -> Mesh:
    """The mesh of all devices (of all processes) with named axes.

    Args:
      sizes: axis -> length, such as {"data": -1, "fsdp": 1}; one length may be -1, for what is left over.
    Raises: ValueError if the lengths do not multiply to the number of devices.
    """
    there, lengths = jax.device_count(), list(sizes.values())
    asked = " x ".join(f"{name}={length}" for name, length in sizes.items())
    if lengths.count(-1) > 1 or any(length < 1 and length != -1 for length in lengths):
        raise ValueError(f"mesh lengths are positive and at most one is -1 (the rest); got {asked}.")
    known = int(np.prod([length for length in lengths if length != -1]))
    lengths = [there // known if length == -1 else length for length in lengths]
    if int(np.prod(lengths)) != there:
        raise ValueError(
            f"mesh {asked} does not cover {there} devices; use lengths whose product is {there}."
        )
    # Auto, not the default Explicit, under which products over the batch axis and reshapes raise.
    return jax.make_mesh(lengths, tuple(sizes), axis_types=(AxisType.Auto,) * len(lengths))


def rows(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices: batches."""
    return NamedSharding(mesh, P(mesh.axis_names))


def whole(mesh: Mesh) -> NamedSharding:
    """A copy on every device: keys and metrics."""
    return NamedSharding(mesh, P())


def shardings(shapes: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
    """A sharding for every leaf of `shapes` (arrays or ShapeDtypeStructs).

    Args:
      rules: (regex, spec): the first whose regex is found in a path decides; paths look like
        `opt/0/mu/enc/conv0/kernel`. DEFAULT follows.
    Raises: ValueError if a spec does not divide its leaf.
    """

    def place_leaf(path, leaf):
        spec = next(spec for regex, spec in (*rules, *DEFAULT) if re.search(regex, path))
        if not isinstance(spec, P):
            spec = spec(leaf.shape, trees.nbytes(leaf), mesh)
        sharding = NamedSharding(mesh, spec)
        try:
            sharding.check_compatible_aval(leaf.shape)  # the rank
            sharding.shard_shape(leaf.shape)  # the lengths
        except ValueError:
            raise ValueError(
                f"{path} of shape {leaf.shape} does not divide as {spec} over the mesh "
                f"{dict(mesh.shape)}; change its rule or the mesh."
            ) from None
        return sharding

    leaves = [place_leaf(path, leaf) for path, leaf in trees.named(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def bytes_per_device(shapes: PyTree, layout: PyTree) -> int:
    """Bytes that one device holds of the leaves of `shapes`, laid out as `layout`."""

    def held(leaf, sharding):
        return int(np.prod(sharding.shard_shape(leaf.shape))) * np.dtype(leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(held, shapes, layout)))


def place(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this process's rows (B / processes, ...) on its devices; returns global arrays (B, ...)."""
    return jax.make_array_from_process_local_data(rows(mesh), batch)


def check_divides(batch_size: int, mesh: Mesh, name: str = "batch_size") -> None:
    """Raises ValueError unless the global batch divides over all devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f"{name} {batch_size} does not divide over {mesh.size} devices; "
            f"use a multiple of {mesh.size}."
        )
