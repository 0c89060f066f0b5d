"""The residual block of the EDM U-Nets, shared by DDPM++, NCSN++ and ADM."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax

from fastdiff_jax.networks.attention import self_attention
from fastdiff_jax.networks.layers import Conv, Dense, GroupNorm, Init, downsample, upsample
from fastdiff_jax.types import Array

ADM_INIT = Init("kaiming_uniform", math.sqrt(1 / 3), math.sqrt(1 / 3))


class Style(NamedTuple):
    """What all blocks of a network share; the defaults are ADM's."""

    adaptive: bool = True  # the embedding scales and shifts the second norm; else it is added before it
    skip_scale: float = 1.0
    eps: float = 1e-5
    project: bool = False  # the skip path has a 1x1 convolution wherever it resamples
    taps: tuple[float, ...] = (1, 1)
    dropout: float = 0.0
    initial: Init = ADM_INIT
    last: Init = Init("kaiming_uniform", 0.0, 0.0)  # of the layers that end a residual branch
    attention: Init = ADM_INIT  # of qkv
    step: Init = ADM_INIT  # of the layer that reads the step condition
    channels_per_head: int | None = 64  # None: one head, however wide

    def heads(self, channels: int) -> int:
        """Of an attention over features of so many channels: none, if they are fewer than one head's."""
        return 1 if self.channels_per_head is None else channels // self.channels_per_head


SONG = Style(
    adaptive=False,
    skip_scale=math.sqrt(0.5),
    eps=1e-6,
    project=True,
    initial=Init(),
    last=Init("xavier_uniform", 1e-5),
    attention=Init("xavier_uniform", math.sqrt(0.2)),
    channels_per_head=None,
)


class Block(nn.Module):
    """Two 3x3 convolutions around a noise embedding, then optional self-attention, both residual.

        h = conv0(silu(norm0(x)));  p = affine(emb)
        h = silu(norm1(h + p)),  or silu(norm1(h) (1 + scale) + shift) with [scale, shift] = p
        with a step condition: p = affine(emb) + affine_step(step),  or a second (1 + scale), shift of it
        x = (conv1(dropout(h)) + skip(x)) skip_scale
        x = (proj(attention(qkv(norm2(x)))) + x) skip_scale

    x (B,H,W,C), emb (B,E) -> (B,H',W',channels), resampled by two with `up` or `down`.

    Args:
      step: (B,E) embedding of how many steps the sampler has (SFD-v); None leaves its layer out.
      heads: of the attention; 0 for none.
      train: whether to drop (the random key comes as Flax's "dropout").
    Source: Karras et al. 2022 (arXiv:2206.00364), App. F; specs of the EDM code; the step condition is
    that of Zhou et al. 2024 (arXiv:2409.19681).
    """

    channels: int
    heads: int = 0
    up: bool = False
    down: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(
        self, x: Array, emb: Array, train: bool = False, step: Array | None = None
    ) -> Array:
        style, resampling = self.style, dict(up=self.up, down=self.down, taps=self.style.taps)
        h = jax.nn.silu(GroupNorm(style.eps, name="norm0")(x))
        h = Conv(self.channels, **resampling, initial=style.initial, name="conv0")(h)
        width = self.channels * (2 if style.adaptive else 1)

        def affine(name, initial, e):
            return Dense(width, initial=initial, name=name)(e).astype(x.dtype)[:, None, None]

        parts = [affine("affine", style.initial, emb)]
        if step is not None:
            parts.append(affine("affine_step", style.step, step))
        norm1 = GroupNorm(style.eps, name="norm1")
        if style.adaptive:
            h = norm1(h)
            for p in parts:
                h = h * (1 + p[..., : self.channels]) + p[..., self.channels :]
        else:
            h = norm1(h + sum(parts))
        h = nn.Dropout(style.dropout, deterministic=not train)(jax.nn.silu(h))
        h = Conv(self.channels, initial=style.last, name="conv1")(h)

        resampled = self.up or self.down
        if self.channels != x.shape[-1] or (resampled and style.project):
            x = Conv(self.channels, 1, **resampling, initial=style.initial, name="skip")(x)
        elif self.up:
            x = upsample(x, style.taps)
        elif self.down:
            x = downsample(x, style.taps)
        x = (h + x) * style.skip_scale
        if not self.heads:
            return x
        h = GroupNorm(style.eps, name="norm2")(x)
        h = Conv(3 * self.channels, 1, initial=style.attention, name="qkv")(h)
        h = self_attention(h, self.heads)
        h = Conv(self.channels, 1, initial=style.last, name="proj")(h)
        return (h + x) * style.skip_scale
