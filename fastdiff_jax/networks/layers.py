"""The layers that the EDM networks are made of: convolution with resampling, group norm, dense.

Every layer computes in the dtype of its input, with its weights cast to it: so float32, bfloat16 and
float64 networks are one code, and a mixed-precision network only casts its image path.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdiff_jax.types import Array, Key


class Init(NamedTuple):
    """How a layer draws its weights: one mode, with a gain each for kernel and bias."""

    mode: str = "xavier_uniform"
    kernel: float = 1.0
    bias: float = 0.0


def draw(key: Key, mode: str, shape: tuple[int, ...], fans: tuple[int, int], gain: float) -> Array:
    """Initial weights of a layer, float32.

        xavier_uniform   U(-1, 1) sqrt(6 / (fan_in + fan_out))     kaiming_uniform   U(-1, 1) sqrt(3 / fan_in)
        xavier_normal    N(0, 1)  sqrt(2 / (fan_in + fan_out))     kaiming_normal    N(0, 1)  sqrt(1 / fan_in)

    Args:
      fans: (fan_in, fan_out) of the layer; a bias is drawn with its layer's fans.
      gain: factor on the draw; zero gives zeros.
    Raises: ValueError naming the known modes.
    Source: specs of the EDM code, Karras et al. 2022 (arXiv:2206.00364).
    """
    variances = {"xavier": 2 / sum(fans), "kaiming": 1 / fans[0]}
    family, _, law = mode.partition("_")
    if family not in variances or law not in ("uniform", "normal"):
        known = ", ".join(f"{f}_{law}" for f in variances for law in ("uniform", "normal"))
        raise ValueError(f"no weight initialisation {mode!r}; known: {known}.")
    if gain == 0:
        return jnp.zeros(shape)
    if law == "normal":
        return gain * math.sqrt(variances[family]) * jax.random.normal(key, shape, jnp.float32)
    bound = math.sqrt(3 * variances[family])
    return gain * bound * jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)


class Dense(nn.Module):
    """y = x kernel + bias, x (..., n) -> (..., features)."""

    features: int
    bias: bool = True
    initial: Init = Init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        mode, shape = self.initial.mode, (x.shape[-1], self.features)
        kernel = self.param("kernel", lambda key: draw(key, mode, shape, shape, self.initial.kernel))
        y = x @ kernel.astype(x.dtype)
        if self.bias:
            bias = self.param("bias", lambda key: draw(key, mode, shape[1:], shape, self.initial.bias))
            y = y + bias.astype(x.dtype)
        return y


class Conv(nn.Module):
    """k x k correlation with zero padding k // 2 and bias, after an optional resampling by two.

    x (B,H,W,C) -> (B,H',W',features), H' = H, 2 H with `up`, H / 2 with `down`.

    Args:
      kernel: k, odd.
      taps: filter of the resampling, see `upsample` and `downsample`.
      fused: share the padding between both filters, and with `down` convolve first; differs at the
        borders only (the input pyramid of NCSN++ has it).
    """

    features: int
    kernel: int = 3
    up: bool = False
    down: bool = False
    taps: tuple[float, ...] = (1, 1)
    fused: bool = False
    initial: Init = Init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, mode = self.kernel, self.initial.mode
        shape = (size, size, x.shape[-1], self.features)
        fans = (size * size * x.shape[-1], size * size * self.features)
        kernel = self.param("kernel", lambda key: draw(key, mode, shape, fans, self.initial.kernel))
        bias = self.param("bias", lambda key: draw(key, mode, shape[3:], fans, self.initial.bias))

        padding, margin = size // 2, (len(self.taps) - 1) // 2
        if self.up:
            x = upsample(x, self.taps, max(margin - padding, 0) if self.fused else margin)
            padding = max(padding - margin, 0) if self.fused else padding
        elif self.down and self.fused:
            padding = padding + margin
        elif self.down:
            x = downsample(x, self.taps, margin)
        x = correlate(x, kernel.astype(x.dtype), padding) + bias.astype(x.dtype)
        return downsample(x, self.taps, 0) if self.down and self.fused else x


class GroupNorm(nn.Module):
    """Zero mean and unit variance over positions and groups of at least four channels, then affine.

    min(32, C // 4) groups unless given, biased variance; statistics in at least float32.
    x (B,...,C) -> (B,...,C).
    Raises: ValueError if the channels do not divide into the groups.
    """

    eps: float = 1e-5
    groups: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        groups = self.groups or min(32, channels // 4)
        if groups == 0 or channels % groups:
            raise ValueError(
                f"group norm cannot split {channels} channels into {groups} groups of equal size; "
                "use a multiple of 4 up to 128 channels, of 32 above."
            )
        scale = self.param("scale", lambda key: jnp.ones(channels))
        bias = self.param("bias", lambda key: jnp.zeros(channels))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(x.shape[0], -1, channels)
        centred = wide - _over_groups(wide.mean(1), groups)[:, None]
        variance = _over_groups(jnp.square(centred).mean(1), groups)
        factor = jax.lax.rsqrt(variance + self.eps) * scale.astype(wide.dtype)
        normal = centred * factor[:, None] + bias.astype(wide.dtype)
        return normal.reshape(x.shape).astype(x.dtype)


def correlate(x: Array, kernel: Array, padding: int) -> Array:
    """Correlation of x (B,H,W,C) with kernel (k,k,C,O), stride one, zeros around."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def downsample(x: Array, taps: tuple[float, ...], padding: int | None = None) -> Array:
    """Every second value of x (B,H,W,C) filtered along both axes by taps / sum(taps).

    Args:
      taps: an even number of them, symmetric.
      padding: zeros on every side; by default as many as halve the size exactly.
    """
    padding = (len(taps) - 1) // 2 if padding is None else padding
    weights = [tap / sum(taps) for tap in taps]
    if weights == [0.5, 0.5] and padding == 0:
        batch, height, width, channels = x.shape
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    for axis in (1, 2):
        x = _filtered(x, weights, axis, padding, stride=2)
    return x


def upsample(x: Array, taps: tuple[float, ...], padding: int | None = None) -> Array:
    """The transpose of `downsample`, times four: x (B,H,W,C) -> (B,2H,2W,C) at the default padding."""
    padding = (len(taps) - 1) // 2 if padding is None else padding
    weights = [2 * tap / sum(taps) for tap in taps]
    for axis in (1, 2):
        x = _filtered(x, weights, axis, len(taps) - 1 - padding, dilation=2)
    return x


def _over_groups(values: Array, groups: int) -> Array:
    """(B,C) means over neighbouring channels, repeated for each of them.

    As a product with a block matrix: splitting the channel axis instead keeps XLA's CPU back end from
    fusing and vectorising, which made whole U-Net gradients a fifth slower.
    """
    size = values.shape[-1] // groups
    group = jnp.arange(values.shape[-1]) // size
    share = (group[:, None] == group).astype(values.dtype) / size
    return jnp.matmul(values, share, precision="highest")


def _filtered(x, weights, axis, padding, stride=1, dilation=1):
    # Shifted slices instead of a depthwise convolution, which is slow on CPUs, its gradient more so.
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (padding, padding, dilation - 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), widths)
    reach = (x.shape[axis] - len(weights)) // stride * stride + 1
    shifted = (jax.lax.slice_in_dim(x, k, k + reach, stride, axis) for k in range(len(weights)))
    return sum(weight * part for weight, part in zip(weights, shifted))
