"""AlexNet without its classifier: the small trunk of perceptual distances, with a tap after every relu."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdiff_jax.networks import layers
from fastdiff_jax.networks.module import network, options
from fastdiff_jax.types import Array, Network

KERNELS, STRIDES, PADDINGS = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
POOLED = (1, 2)  # layers behind a 3x3 maximum of stride two
TAPS = tuple(f"relu{layer + 1}" for layer in range(5))
LEAST = 31  # a smaller side would be empty behind the second pool
DEFAULTS = dict(channels=(64, 192, 384, 256, 256))
INITIAL = layers.Init("kaiming_normal", 2**0.5)


class Convolution(nn.Module):
    """k x k correlation with stride, zeros around, and bias."""

    features: int
    kernel: int
    stride: int
    padding: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        fans = (self.kernel**2 * shape[2], self.kernel**2 * shape[3])
        kernel = self.param(
            "kernel", lambda key: layers.draw(key, INITIAL.mode, shape, fans, INITIAL.kernel)
        )
        bias = self.param("bias", lambda key: jnp.zeros(self.features))
        y = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (self.stride,) * 2, ((self.padding,) * 2,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return y + bias.astype(x.dtype)


class AlexNet(nn.Module):
    """Images (B,H,W,C) -> the last activations; noise level and condition are not read."""

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Mapping[str, Array], train: bool):
        if min(x.shape[1:3]) < LEAST:
            raise ValueError(
                f"network alexnet wants images of {LEAST}x{LEAST} or more; got {x.shape[1]}x{x.shape[2]}: "
                "resize them first."
            )
        features, sizes = {}, zip(self.channels, KERNELS, STRIDES, PADDINGS, strict=True)
        for layer, size in enumerate(sizes):
            x = _pooled(x) if layer in POOLED else x
            x = jax.nn.relu(Convolution(*size, name=f"conv{layer + 1}")(x))
            features[TAPS[layer]] = x
        return x, features


def build(config: Mapping, shape: tuple[int, int, int], classes: int) -> Network:
    """Five convolutions with relu, a 3x3 maximum of stride two behind the first and the second.

    The images' normalisation is not part of it.

    Args:
      config: `channels` of the layers.
      shape, classes: not read; it takes images of 31x31 or more.
    Returns: a network with taps relu1 to relu5: (B,h,w,channels).
    Raises: ValueError for unknown options, and in a call for smaller images.
    Source: Krizhevsky 2014 (arXiv:1404.5997), as trained by torchvision.
    """
    del shape, classes
    settings = options(config, DEFAULTS, "alexnet")
    if len(settings["channels"]) != len(KERNELS):
        raise ValueError(f"network alexnet wants {len(KERNELS)} channels; got {settings['channels']}.")
    return network(AlexNet(**settings))


def convolutions() -> tuple[tuple[str, int], ...]:
    """(our name, index among torchvision's `features`) of every layer."""
    return tuple((f"conv{layer + 1}", index) for layer, index in enumerate((0, 3, 6, 8, 10)))


def _pooled(x: Array) -> Array:
    """Maximum over 3x3 windows of stride two, from slices: a window reduction's gradient crawls on CPUs."""
    for axis in (1, 2):
        reach = (x.shape[axis] - 3) // 2 * 2 + 1
        parts = [jax.lax.slice_in_dim(x, k, k + reach, 2, axis) for k in range(3)]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x
