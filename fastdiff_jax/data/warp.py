"""Images through affine maps without aliasing: up by a wavelet's low-pass, read bilinearly, down again.

Source: Karras et al. 2020 (arXiv:2006.06676), App. B; shapes are static here, whatever the maps are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Array

# Low-pass decomposition filter of the symlet with six vanishing moments; its sum is sqrt(2).
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
MARGIN = len(SYM6) // 4  # pixels that the filters need around an image
MATMUL = jax.lax.Precision.HIGHEST  # bfloat16 passes of a TPU would show in the images


def warped(images: Array, inverse: Array, margin: str = "batch") -> Array:
    """Images (B,S,S,C) through the maps `inverse` (B,3,3), without aliasing.

    An image is continued by its reflection, upsampled twofold with a wavelet's low-pass, read bilinearly at
    twice the resolution, and downsampled with the same low-pass; where the map is the identity, the image
    comes back. The lengths do not depend on the maps: all of a continuation is S - 1 wide, and the filters are
    matrices (L,S) per axis, with rows that are struck out.

    Args:
      margin: "batch" continues images as far as the batch's widest map reads, as EDM does, so an image depends
        a little on the others of its batch: 3e-5 at most and 1e-8 on average, by the filters' tails.
        "full" continues all of them by S - 1.
    """
    side, dtype = images.shape[1], images.dtype
    reflection, up, down = (matrix.astype(dtype) for matrix in _filters(side))
    low, high = _reach(inverse, side) if margin == "batch" else (jnp.full(2, side - 1),) * 2
    spread = []
    for axis in (0, 1):  # x, y
        start, end = side - 1 - low[axis], 2 * side - 1 + high[axis]
        read = (jnp.arange(3 * side - 2) >= start) & (jnp.arange(3 * side - 2) < end)
        kept = (jnp.arange(6 * side - 4) >= 2 * start) & (jnp.arange(6 * side - 4) < 2 * end)
        narrowed = jnp.where(read[:, None], reflection, 0)
        spread.append(jnp.where(kept[:, None], product(up, narrowed), 0))
    planes = images.transpose(0, 3, 1, 2)  # one matrix a channel: faster on a CPU than channels last
    large = product(product(spread[1], planes), spread[0].T)
    # At twice the resolution, between pixel corners instead of centres: A stays, t becomes 2t + (A - 1) / 2.
    linear = inverse[:, :2, :2]
    shift = 2 * inverse[:, :2, 2] + (linear.sum(-1) - 1) / 2
    length = 2 * (side + 2 * MARGIN)
    places = jnp.arange(length, dtype=dtype) + (1 - length) / 2
    x, y = (
        linear[:, row, 0, None, None] * places[None, None, :]
        + linear[:, row, 1, None, None] * places[None, :, None]
        + shift[:, row, None, None]
        + (large.shape[-1] - 1) / 2
        for row in (0, 1)
    )
    small = product(product(down, bilinear(large, x, y)), down.T)
    return small.transpose(0, 2, 3, 1)


def _reach(inverse: Array, side: int) -> tuple[Array, Array]:
    """Pixels, (2,) in x and y, that the batch's maps read beyond the lower and the upper ends."""
    edge = (side - 1) / 2
    corners = jnp.array([(-edge, -edge, 1), (edge, -edge, 1), (edge, edge, 1), (-edge, edge, 1)], inverse.dtype)
    seen = product(inverse, corners.T)[:, :2]  # (B,2,4)
    ends = jnp.stack([-seen, seen]).max((1, 3))  # (2,2): lower and upper, by x and y
    reach = jnp.ceil(jnp.clip(ends + (2 * MARGIN - edge), 0, side - 1)).astype(jnp.int32)
    return reach[0], reach[1]


@functools.cache
def _filters(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis: reflection (3S-2,S), upsampling (6S-4,3S-2), downsampling and cut (S,2S+4 MARGIN)."""
    taps, half = len(SYM6), len(SYM6) // 2
    wide = 3 * side - 2
    reflection = np.eye(side)[reflected(np.arange(wide) - (side - 1), side)]
    # Zeros between samples, the filter backwards: place k reads sample m by the tap 2m + half - k.
    tap = 2 * np.arange(wide)[None, :] + half - np.arange(2 * wide)[:, None]
    up = np.where((tap >= 0) & (tap < taps), SYM6[::-1][np.clip(tap, 0, taps - 1)], 0)
    long = 2 * (side + 2 * MARGIN)
    tap = np.arange(long)[None, :] + half - 1 - 2 * (np.arange(side)[:, None] + MARGIN)
    down = np.where((tap >= 0) & (tap < taps), SYM6[np.clip(tap, 0, taps - 1)], 0)
    return reflection, up, down


def bilinear(planes: Array, x: Array, y: Array) -> Array:
    """Values of (B,C,H,W) at columns x and rows y (B,h,w), in pixels; zero outside."""
    channels, height, width = planes.shape[1:]

    def one(planes, x, y):
        left, top = jnp.floor(x), jnp.floor(y)
        total = 0
        for row, by in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, along in ((left, 1 - (x - left)), (left + 1, x - left)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                line = jnp.clip(row, 0, height - 1).astype(jnp.int32)
                place = line * width + jnp.clip(column, 0, width - 1).astype(jnp.int32)
                values = planes.at[:, place].get(mode="promise_in_bounds")
                total = total + jnp.where(inside, by * along, 0) * values
        return total

    return jax.vmap(one)(planes.reshape(len(planes), channels, height * width), x, y)


def product(a: Array, b: Array) -> Array:
    """a @ b, at full precision."""
    return jnp.matmul(a, b, precision=MATMUL)


def reflected(index, size):
    """Indices beyond an axis, folded back into it; the outermost pixels are not repeated."""
    return size - 1 - abs(size - 1 - index % (2 * size - 2))
