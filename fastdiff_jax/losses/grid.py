"""The levels of a discrete model, and a grid of some of them: where images are noised to, by label."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fastdiff_jax.processes import discrete
from fastdiff_jax.types import Array, expand

RULES = ("exact", "grid")


class Grid(NamedTuple):
    """Levels by label, and those of a solve."""

    table: np.ndarray  # (M,) sigma of each label, rising
    labels: np.ndarray  # (K,) of the solve, decreasing
    levels: np.ndarray  # (K+1,) their sigmas, and 0

    @property
    def abar(self) -> np.ndarray:
        """(M,) cumulated alphas."""
        return 1 / (1 + self.table**2)

    def sigma(self, label: Array) -> Array:
        """The level of each label."""
        return jnp.asarray(self.table, jnp.result_type(float))[label]

    def start(self, x0: Array, index: Array, noise: Array, pure: bool = True) -> tuple[Array, Array]:
        """Images x0 (B,...) noised to entry `index` () of the grid, and its level ().

        Args:
          pure: entry 0 is noise alone as where samples start, of unit variance in the model's own coordinates:
            sqrt(1 + sigma^2) noise.
        """
        sigma = jnp.asarray(self.levels, x0.dtype)[index]
        x = x0 + sigma * noise
        if pure:
            x = jnp.where(index == 0, jnp.sqrt(1 + sigma**2) * noise, x)
        return x, sigma

    def renoised(self, x0: Array, label: Array, noise: Array, rule: str = "exact") -> tuple[Array, Array]:
        """Images x0 (B,...) noised to the level of `label` (B,), and that level (B,).

        Args:
          rule: "exact", or "grid": the noise is of the grid's entry for that label, see `discrete.looked_up`,
            sqrt(abar_g / abar_t) (x0 + sigma_g noise), as in the authors' code of Flash Diffusion
            (arXiv:2406.02347): labels off the grid have nearly clean images, whatever the network is told.
        """
        told = self.sigma(label).astype(x0.dtype)
        if rule == "exact":
            return x0 + expand(told, x0) * noise, told
        found = jnp.asarray(self.levels, x0.dtype)[discrete.looked_up(label, self.labels)]
        scale = jnp.sqrt((1 + told**2) / (1 + found**2))
        return expand(scale, x0) * (x0 + expand(found, x0) * noise), told


def grid(abar: np.ndarray, count: int, spacing: str = "trailing") -> Grid:
    """The grid of K = `count` labels out of `discrete.labels`. Raises: ValueError as that does."""
    table = discrete.sigmas(abar)
    labels = discrete.labels(spacing, count, len(table))
    return Grid(table, labels, np.append(table[labels], 0.0))
