"""Score identity losses: a generator's distance to a teacher through a teacher and a fake denoiser.

Source: Zhou et al. 2024 (arXiv:2404.04057), its identities 1 to 3 and final loss.
"""

import jax
import jax.numpy as jnp

from fastdiff_jax.losses.matching import without_nan
from fastdiff_jax.types import Array, expand


def inverse_weight(x: Array, real: Array, floor: float = 1e-5) -> Array:
    """(B,) max(mean |x - real|, floor), without gradient: the scale that the loss is divided by."""
    error = jnp.abs(x - real).reshape(len(x), -1).mean(1)
    return jax.lax.stop_gradient(jnp.maximum(error, floor))


def elements(x: Array, real: Array, fake: Array, alpha: float, floor: float = 1e-5) -> Array:
    """SiD's loss before reduction, all (B,...).

        omega (real - fake) ((real - x) - alpha (real - fake)),    omega = 1 / inverse_weight, per sample

    Args:
      x: generated images x_g.
      real, fake: teacher's and fake denoiser's answer at x_t = x_g + sigma n. Gradients reach x through all
        three; only omega is stopped. Stopping x_t gives the gradient of distribution matching instead.
      alpha: 0.5 halves the gradient of the Fisher divergence, 1 drops the sampling path, 1.2 extrapolates.
    Samples with a NaN in any of the three contribute zero.
    """
    x, real, fake = without_nan(x, real, fake)
    gap = real - fake
    return gap * ((real - x) - alpha * gap) / expand(inverse_weight(x, real, floor), x)
