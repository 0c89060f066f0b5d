"""VGG16 without its classifier: the trunk of perceptual distances, with a tap at the end of every block."""

from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdiff_jax.networks import layers
from fastdiff_jax.networks.module import network, options
from fastdiff_jax.types import Array, Network

DEPTHS = (2, 2, 3, 3, 3)  # convolutions a block; a 2x2 pool between two blocks
TAPS = tuple(f"relu{block + 1}_{depth}" for block, depth in enumerate(DEPTHS))
LEAST = 2 ** (len(DEPTHS) - 1)  # a smaller side would be empty in the last block
DEFAULTS = dict(channels=(64, 128, 256, 512, 512), pooling="max")
INITIAL = layers.Init("kaiming_normal", 2**0.5)


class Convolution(nn.Module):
    """3x3 correlation, zeros around, and bias: x (B,H,W,C) -> (B,H,W,features)."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3, 3, x.shape[-1], self.features)
        fans = (9 * shape[2], 9 * shape[3])
        kernel = self.param(
            "kernel", lambda key: layers.draw(key, INITIAL.mode, shape, fans, INITIAL.kernel)
        )
        bias = self.param("bias", lambda key: jnp.zeros(self.features))
        # XLA's convolution of doubles on CPUs is a plain loop, a hundred times slower than products.
        correlate = _by_products if x.dtype == jnp.float64 else layers.correlate
        return correlate(x, kernel.astype(x.dtype), 1) + bias.astype(x.dtype)


class VGG(nn.Module):
    """Images (B,H,W,C) -> the last block's activations; noise level and condition are not read."""

    channels: tuple[int, ...]
    pooling: str

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Mapping[str, Array], train: bool):
        if min(x.shape[1:3]) < LEAST:
            raise ValueError(
                f"network vgg halves images {len(DEPTHS) - 1} times, so it wants {LEAST}x{LEAST} or more; got "
                f"{x.shape[1]}x{x.shape[2]}: resize them first."
            )
        features = {}
        for block, (width, depth) in enumerate(zip(self.channels, DEPTHS, strict=True)):
            x = POOLING[self.pooling](x) if block else x
            for index in range(depth):
                x = jax.nn.relu(Convolution(width, name=f"conv{block + 1}_{index + 1}")(x))
            features[TAPS[block]] = x
        return x, features


def build(config: Mapping, shape: tuple[int, int, int], classes: int) -> Network:
    """Thirteen 3x3 convolutions with relu in five blocks, a 2x2 pool between them.

    The images' normalisation is not part of it. Published weights are converted by launch/convert.py.

    Args:
      config: `channels` of the blocks; `pooling`, "max" as it was trained, or "average".
      shape, classes: not read; it takes images of 16x16 or more.
    Returns: a network with taps relu1_2, relu2_2, relu3_3, relu4_3, relu5_3: (B,h,w,channels).
    Raises: ValueError for unknown options, and in a call for smaller images.
    Source: Simonyan and Zisserman 2015 (arXiv:1409.1556), configuration D.
    """
    del shape, classes
    settings = options(config, DEFAULTS, "vgg")
    if settings["pooling"] not in POOLING:
        raise ValueError(f"network vgg has no pooling {settings['pooling']!r}; known: {', '.join(POOLING)}.")
    if len(settings["channels"]) != len(DEPTHS):
        raise ValueError(f"network vgg wants {len(DEPTHS)} channels; got {settings['channels']}.")
    return network(VGG(**settings))


def convolutions() -> Iterator[tuple[str, int]]:
    """(our name, index among torchvision's `features`, where relus and pools count too) of every layer."""
    index = 0
    for block, depth in enumerate(DEPTHS):
        for layer in range(depth):
            yield f"conv{block + 1}_{layer + 1}", index
            index += 2
        index += 1


def _by_products(x: Array, kernel: Array, padding: int) -> Array:
    """`layers.correlate` as one matrix product for every offset of the kernel."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )


def _blocks(x: Array) -> Array:
    """(B,H/2,2,W/2,2,C), odd rests cut; a window reduction's gradient crawls on CPUs."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


POOLING = {"max": lambda x: _blocks(x).max((2, 4)), "average": lambda x: _blocks(x).mean((2, 4))}
