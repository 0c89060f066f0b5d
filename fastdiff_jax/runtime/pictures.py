"""The picture of a conditional run: the same images as input, as original, and as each sampler makes them."""

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context

from fastdiff_jax.runtime.figures import STYLE, canvas, mosaic, png

WIDTH, HEIGHT = 12.0, 0.95  # inches: of the figure, of a strip with its name


def strips(named: Mapping[str, np.ndarray]) -> bytes:
    """The PNG of image sets (N,H,W,C) of equal N, stored values: a line each, under its name."""
    with rc_context(STYLE):
        figure = canvas((WIDTH, HEIGHT * len(named)))
        for ax, (name, images) in zip(figure.subplots(len(named), 1, squeeze=False)[:, 0], named.items()):
            ax.imshow(mosaic(images, None, side=len(images)), cmap="gray", vmin=0, vmax=255)
            ax.set_axis_off()
            ax.set_anchor("W")
            ax.set_title(name, fontsize=9.5, fontweight="normal", pad=2)
        return png(figure)
