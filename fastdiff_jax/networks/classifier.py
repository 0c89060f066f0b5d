"""A small convolutional classifier: the feature network of data sets that have none of their own."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdiff_jax.networks.layers import Conv, Dense, Init
from fastdiff_jax.networks.module import network, options
from fastdiff_jax.types import Array, Network

DEFAULTS = dict(channels=(32, 64, 64), features=64)
RELU_INIT = Init("kaiming_normal", 2**0.5)


class Classifier(nn.Module):
    """Images (B,H,W,C) -> logits (B,classes); noise level and condition are not read."""

    channels: tuple[int, ...]
    features: int
    classes: int

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Mapping[str, Array], train: bool):
        first, second, third = self.channels
        x = jax.nn.relu(Conv(first, initial=RELU_INIT, name="conv0")(x))
        x = jax.nn.relu(Conv(second, initial=RELU_INIT, name="conv1")(x))
        index = 2
        while index == 2 or min(x.shape[1:3]) > 4:
            x = jax.nn.relu(Conv(third, initial=RELU_INIT, name=f"conv{index}")(_pooled(x)))
            index += 1
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(Dense(self.features, initial=RELU_INIT, name="dense0")(x))
        return Dense(self.classes, name="dense1")(x), {"features": x}


def build(config: Mapping, shape: tuple[int, int, int], classes: int) -> Network:
    """Two 3x3 convolutions, 2x2 max pool and convolution until a side is at most 4, two dense layers.

    For 8x8 images: convolutions of 32 and 64 channels, pool, convolution of 64, dense 64, logits; larger
    ones repeat the middle part. Relu in between.

    Args:
      config: `channels` of the first, second and repeated convolution; `features`.
      shape: (H,W,C), both sides at least 2.
    Returns: a network with tap "features": the (B,features) activations before the last layer.
    Raises: ValueError for unknown options, images that are too small, or no classes.
    """
    settings = options(config, DEFAULTS, "classifier")
    if classes < 2:
        raise ValueError(f"network classifier needs labelled data; got {classes} classes.")
    if len(settings["channels"]) != 3:
        raise ValueError(f"network classifier wants three channels; got {settings['channels']}.")
    if min(shape[:2]) < 2:
        raise ValueError(f"network classifier wants images of 2x2 or more; got {shape}.")
    return network(Classifier(classes=classes, **settings))


def _pooled(x: Array) -> Array:
    """2x2 maximum, odd rests cut; by reshape, as the gradient of a window reduction crawls on CPUs."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.max(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
