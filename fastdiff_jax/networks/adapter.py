"""The adapter of a U-Net's encoder: features of a map, to add at each of its levels."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from fastdiff_jax.networks.layers import Conv, Init, downsample
from fastdiff_jax.networks.module import beside
from fastdiff_jax.types import Array


class Adapter(nn.Module):
    """A map (B,H,W,C') -> [(B,H,W,widths[0]), (B,H/2,W/2,widths[1]), ...], all zero at first.

        h = conv_in(map);  at each level but the first h = mean over 2x2 of h
        h = h + conv1(silu(conv0(h))),  conv0 3x3, conv1 1x1;    feature = out(h), 1x1

    Zeros at first, so that training starts from what the network is without it; the reference's are random.
    Source: Mou et al. 2023 (arXiv:2302.08453), section 3.3, without its unshuffling.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        features, x = [], Conv(self.widths[0], name="conv_in")(x)
        for level, width in enumerate(self.widths):
            x = downsample(x, (1, 1)) if level else x
            if x.shape[-1] != width:
                x = Conv(width, 1, name=f"level{level}_in")(x)
            h = jax.nn.silu(Conv(width, name=f"level{level}_conv0")(x))
            x = x + Conv(width, 1, name=f"level{level}_conv1")(h)
            features.append(Conv(width, 1, initial=Init(kernel=0.0), name=f"level{level}_out")(x))
        return features


def added(image: Array, cond: Mapping[str, Any], channels: int, widths: tuple[int, ...]) -> Sequence[Array]:
    """What a U-Net adds at the levels of its encoder: the features of the condition "adapter", if it is there.

    To be called in a compact method, whose submodule "adapter" it makes.
    Raises: ValueError if the condition is not a map of `channels` as large as the images.
    """
    if "adapter" not in cond:
        return ()
    return Adapter(widths, name="adapter")(beside(image, cond, "adapter", channels))
