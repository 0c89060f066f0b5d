"""Inception-v3 as FID uses it, the TensorFlow graph of 2015-12-05: its pools and outputs are no other's."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.networks import layers
from fastdiff_jax.networks.module import network, options
from fastdiff_jax.types import Array, Network

OUTPUTS, FEATURES = 1008, 2048
LEAST = 75  # a smaller side would be empty in the last blocks
EPSILON = 1e-3  # of the batch norms
INITIAL = layers.Init("kaiming_normal", 2**0.5)


class Size(NamedTuple):
    """A convolution: channels, kernel, stride, padding (rows, columns)."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)


def same(channels: int, *kernel: int) -> Size:
    """A convolution that keeps the size: zeros on the long sides of its kernel."""
    return Size(channels, kernel, 1, (kernel[0] // 2, kernel[1] // 2))


class Unit(nn.Module):
    """relu of the batch norm of a convolution; the norm's statistics are weights that never move."""

    size: Size

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, inner = self.size, x.shape[-1]
        shape, area = (*size.kernel, inner, size.channels), int(np.prod(size.kernel))
        fans = (area * inner, area * size.channels)
        kernel = self.param(
            "kernel", lambda key: layers.draw(key, INITIAL.mode, shape, fans, INITIAL.kernel)
        )
        scale, bias, mean, var = (
            self.param(name, lambda key, start=start: jnp.full(size.channels, start))
            for name, start in (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))
        )
        kernel, scale, bias, mean, var = (w.astype(x.dtype) for w in (kernel, scale, bias, mean, var))
        # XLA's convolution of doubles on CPUs is a plain loop, a hundred times slower than products.
        correlate = _by_products if x.dtype == jnp.float64 else _correlate
        y = correlate(x, kernel, size.stride, size.padding)
        return jax.nn.relu((y - mean) * (scale / jnp.sqrt(var + EPSILON)) + bias)


class Block(nn.Module):
    """Chains of units beside each other, joined along channels.

    A branch is (pool before it or None, chain of named sizes, two ends of the chain or none).
    """

    branches: Sequence

    @nn.compact
    def __call__(self, x: Array) -> Array:
        made = []
        for pool, chain, ends in self.branches:
            y = x if pool is None else POOLS[pool](x)
            for name, size in chain:
                y = Unit(size, name=name)(y)
            made += [Unit(size, name=name)(y) for name, size in ends] if ends else [y]
        return jnp.concatenate(made, -1)


def branch(*chain: tuple[str, Size], pool: str | None = None, ends: tuple = ()) -> tuple:
    """An entry of `Block.branches`."""
    return pool, chain, ends


def block_a(pooled: int) -> tuple:
    """Branches of Mixed_5b to 5d."""
    return (
        branch(("branch1x1", Size(64))),
        branch(("branch5x5_1", Size(48)), ("branch5x5_2", same(64, 5, 5))),
        branch(("branch3x3dbl_1", Size(64)), ("branch3x3dbl_2", same(96, 3, 3)),
               ("branch3x3dbl_3", same(96, 3, 3))),
        branch(("branch_pool", Size(pooled)), pool="average"),
    )  # fmt: skip


def block_b() -> tuple:
    """Branches of Mixed_6a."""
    return (
        branch(("branch3x3", Size(384, (3, 3), 2))),
        branch(("branch3x3dbl_1", Size(64)), ("branch3x3dbl_2", same(96, 3, 3)),
               ("branch3x3dbl_3", Size(96, (3, 3), 2))),
        branch(pool="halving"),
    )  # fmt: skip


def block_c(width: int) -> tuple:
    """Branches of Mixed_6b to 6e."""
    tall, wide = (7, 1), (1, 7)
    double = [same(width, *tall), same(width, *wide), same(width, *tall), same(192, *wide)]
    return (
        branch(("branch1x1", Size(192))),
        branch(("branch7x7_1", Size(width)), ("branch7x7_2", same(width, *wide)),
               ("branch7x7_3", same(192, *tall))),
        branch(("branch7x7dbl_1", Size(width)),
               *((f"branch7x7dbl_{number}", size) for number, size in enumerate(double, 2))),
        branch(("branch_pool", Size(192)), pool="average"),
    )  # fmt: skip


def block_d() -> tuple:
    """Branches of Mixed_7a."""
    return (
        branch(("branch3x3_1", Size(192)), ("branch3x3_2", Size(320, (3, 3), 2))),
        branch(("branch7x7x3_1", Size(192)), ("branch7x7x3_2", same(192, 1, 7)),
               ("branch7x7x3_3", same(192, 7, 1)), ("branch7x7x3_4", Size(192, (3, 3), 2))),
        branch(pool="halving"),
    )  # fmt: skip


def block_e(pool: str) -> tuple:
    """Branches of Mixed_7b and 7c, which pool in different ways: an oddity of this graph."""
    ends = lambda name: tuple(
        (f"{name}{end}", same(384, *kernel)) for end, kernel in (("a", (1, 3)), ("b", (3, 1)))
    )
    return (
        branch(("branch1x1", Size(320))),
        branch(("branch3x3_1", Size(384)), ends=ends("branch3x3_2")),
        branch(("branch3x3dbl_1", Size(448)), ("branch3x3dbl_2", same(384, 3, 3)), ends=ends("branch3x3dbl_3")),
        branch(("branch_pool", Size(192)), pool=pool),
    )


# The graph: a size is a convolution, a string a pool, a tuple the branches of a block.
GRAPH = {
    "Conv2d_1a_3x3": Size(32, (3, 3), 2),
    "Conv2d_2a_3x3": Size(32, (3, 3)),
    "Conv2d_2b_3x3": same(64, 3, 3),
    "maxpool1": "halving",
    "Conv2d_3b_1x1": Size(80),
    "Conv2d_4a_3x3": Size(192, (3, 3)),
    "maxpool2": "halving",
    **{f"Mixed_5{name}": block_a(pooled) for name, pooled in (("b", 32), ("c", 64), ("d", 64))},
    "Mixed_6a": block_b(),
    **{f"Mixed_6{name}": block_c(width) for name, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192))},
    "Mixed_7a": block_d(),
    "Mixed_7b": block_e("average"),
    "Mixed_7c": block_e("maximum"),
}
TAPS = (*GRAPH, "pool", "unbiased")


class Inception(nn.Module):
    """Images (B,H,W,3) in about [-1, 1] -> logits (B,1008); noise level and condition are not read."""

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Mapping[str, Array], train: bool):
        if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < LEAST:
            raise ValueError(
                f"network inception wants images (B,H,W,3) of {LEAST}x{LEAST} or more; got {x.shape}."
            )
        taps = {}
        for name, part in GRAPH.items():
            if isinstance(part, str):
                x = POOLS[part](x)
            else:
                x = (Unit(part, name=name) if isinstance(part, Size) else Block(part, name=name))(x)
            taps[name] = x
        taps["pool"] = x.mean((1, 2))
        shape = (FEATURES, OUTPUTS)
        kernel = self.param("kernel", lambda key: layers.draw(key, "xavier_normal", shape, shape, 1.0))
        bias = self.param("bias", lambda key: jnp.zeros(OUTPUTS))
        taps["unbiased"] = jnp.dot(taps["pool"], kernel.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)
        return taps["unbiased"] + bias.astype(x.dtype), taps


def build(config: Mapping, shape: tuple[int, int, int], classes: int) -> Network:
    """The network of the Frechet Inception distance: 23.9 million weights, batch norms in evaluation mode.

    Resizing to 299x299 and scaling are the protocol's, see metrics/resizing.py. Without published weights
    its numbers are no FID.

    Args:
      config: no options.
      shape, classes: not read; it takes images of 75x75 or more.
    Returns: a network with taps for every layer, (B,h,w,C), `pool`, the (B,2048) features, and `unbiased`, the
      (B,1008) logits without bias that the Inception Score takes.
    Raises: ValueError for options, and in a call for other images.
    Source: Szegedy et al. 2016 (arXiv:1512.00567); as published for FID, arXiv:1706.08500.
    """
    del shape, classes
    options(config, {}, "inception")
    return network(Inception())


def _correlate(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), tuple((p, p) for p in padding), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip


def _by_products(x, kernel, stride, padding):
    """`_correlate` as one matrix product for every offset of the kernel."""
    x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    return sum(
        _offset(_offset(x, 1, i, kernel.shape[0], stride), 2, j, kernel.shape[1], stride) @ kernel[i, j]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )


def _offset(x, axis, first, window, stride):
    """What the `first` place of a window meets along an axis."""
    reach = (x.shape[axis] - window) // stride * stride + 1
    return jax.lax.slice_in_dim(x, first, first + reach, stride, axis)


def _windowed(x, combine, stride, fill):
    """`combine` over 3x3 windows, one axis after the other; `fill` around if the size is kept."""
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    for axis in (1, 2):
        a, b, c = (_offset(x, axis, k, 3, stride) for k in range(3))
        x = combine(combine(a, b), c)
    return x


def _average(x):
    """Mean over 3x3 windows of what lies inside the image."""
    counts = [np.convolve(np.ones(size), np.ones(3), "same") for size in x.shape[1:3]]
    return _windowed(x, jnp.add, 1, 0.0) / jnp.asarray(np.outer(*counts)[..., None], x.dtype)


POOLS = {
    "halving": lambda x: _windowed(x, jnp.maximum, 2, None),
    "maximum": lambda x: _windowed(x, jnp.maximum, 1, -jnp.inf),
    "average": _average,
}
