"""Discriminators: small convolutional heads on the features of a frozen or a fake denoiser."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdiff_jax.networks.layers import GroupNorm, Init, draw
from fastdiff_jax.networks.module import network, options
from fastdiff_jax.types import Array, Network

KAIMING = Init("kaiming_uniform", 3**-0.5, 3**-0.5)  # torch's default, as the published heads have it


class Layer(NamedTuple):
    """A convolution and what follows it."""

    channels: int | None  # None: as many as the features have
    kernel: int
    stride: int
    padding: int
    bias: bool = True
    then: tuple[str, ...] = ()  # of "norm" and "silu", in order
    groups: int | None = None  # of the norm; None: as `layers.GroupNorm` chooses them


def dmd2(layers=((None, 4, 2, 1), (None, 4, 4, 0))) -> tuple[Layer, ...]:
    """Convolutions (channels, kernel, stride, padding), each with group norm and SiLU, then 1x1 to a logit.

    The default is DMD2's for a bottleneck of 8x8 (arXiv:2405.14867); ((None, 4, 2, 1), (None, 2, 2, 0)) fits
    4x4, and ((None, 1, 1, 0),) features without positions.
    """
    hidden = [Layer(*layer, then=("norm", "silu")) for layer in layers]
    return *hidden, Layer(1, 1, 1, 0)


def flash_sd15() -> tuple[Layer, ...]:
    """Flash Diffusion's for the 8x8 middle of Stable Diffusion 1.5 (arXiv:2406.02347): one logit."""
    return (
        Layer(64, 3, 1, 1, then=("silu",)),
        Layer(128, 4, 2, 1, bias=False, then=("silu", "norm"), groups=4),
        Layer(1, 4, 1, 0, bias=False),
    )


def flash(widths=(256, 512, 1024)) -> tuple[Layer, ...]:
    """Flash Diffusion's others: 4x4 convolutions that halve the size, norm from the second on, 4x4 to logits.

    (256, 512, 1024) is SDXL's on a middle of 32x32, (64, 128, 256) that of its edge adapters; (64, 128, 256,
    512, 1024) PixArt's and (64, 128, 256, 512) SD3's, both on a prediction of 128x128.
    """
    first, *others = widths
    return (
        Layer(first, 4, 2, 1, bias=False, then=("silu",)),
        *(Layer(width, 4, 2, 1, bias=False, then=("norm", "silu"), groups=4) for width in others),
        Layer(1, 4, 1, 0, bias=False),
    )


HEADS = {"dmd2": dmd2, "flash_sd15": flash_sd15, "flash": flash}


class Head(nn.Module):
    """Features (B,h,w,C), or (B,C) as 1x1, to logits (B,h',w'); noise level and condition are not read."""

    layers: tuple[Layer, ...]

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Mapping[str, Array], train: bool):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = x.reshape(len(x), 1, 1, -1) if x.ndim == 2 else x
        for index, layer in enumerate(self.layers):
            x = self._convolved(x, layer, index)
            for what in layer.then:
                norm = GroupNorm(groups=layer.groups, name=f"norm{index}") if what == "norm" else None
                x = jax.nn.silu(x) if norm is None else norm(x)
        return x[..., 0], {}

    def _convolved(self, x, layer, index):
        size, channels = layer.kernel, layer.channels or x.shape[-1]
        if min(x.shape[1:3]) + 2 * layer.padding < size:
            raise ValueError(
                f"layer {index} of the discriminator is {size}x{size} with padding {layer.padding} and sees "
                f"{x.shape[1]}x{x.shape[2]}; set smaller layers in config.models.discriminator.network, or tap "
                "larger features."
            )
        shape = (size, size, x.shape[-1], channels)
        fans = (size * size * x.shape[-1], size * size * channels)
        drawn = partial(draw, mode=KAIMING.mode, shape=shape, fans=fans, gain=KAIMING.kernel)
        kernel = self.param(f"kernel{index}", drawn)
        padding = ((layer.padding, layer.padding),) * 2
        x = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (layer.stride,) * 2, padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        if layer.bias:
            drawn = partial(draw, mode=KAIMING.mode, shape=shape[3:], fans=fans, gain=KAIMING.bias)
            x = x + self.param(f"bias{index}", drawn).astype(x.dtype)
        return x


def build(config: Mapping, shape: tuple[int, ...], classes: int = 0) -> Network:
    """A head by `config.head`, one of HEADS, whose arguments are the other options.

    Images' shape and classes are not read: the features that `init` sees decide the channels.

    Raises: ValueError for unknown heads and options; from `init` and `apply`, for features that are too small.
    """
    del shape, classes
    given = dict(config)
    name = given.pop("head", "dmd2")
    if name not in HEADS:
        raise ValueError(f"network discriminator has no head {name!r}; known: {', '.join(HEADS)}.")
    defaults = {key: one.default for key, one in inspect.signature(HEADS[name]).parameters.items()}
    settings = options(given, defaults, f"discriminator (head {name})")
    return network(Head(HEADS[name](**settings)))
