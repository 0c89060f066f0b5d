"""A generator's distance to a teacher through a fake denoiser: score identity and distribution matching.

Sources: Zhou et al. 2024 (arXiv:2404.04057), its identities 1 to 3 and final loss; Luo et al. 2023
(arXiv:2305.18455); Yin et al. 2024 (arXiv:2311.18828, arXiv:2405.14867).
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


def direction(
    x: Array, real: Array, fake: Array, floor: float | None = 0.0, offset: float = 0.0
) -> Array:
    """Distribution matching's gradient in x before reduction, (B,...), itself without gradient.

        omega (fake - real),    omega = 1 / (inverse_weight + offset), per sample

    Args:
      floor: of omega's denominator; DMD2 has none. None: omega = 1, Diff-Instruct.
      offset: added to the denominator instead, as Flash Diffusion does (arXiv:2406.02347).
    What is not finite becomes finite, as x = real with no floor: NaN zero, infinity the largest number.
    Source: arXiv:2311.18828, eq. 7 and 8; the weight as in DMD2's code.
    """
    gap = fake - real
    if floor is not None:
        gap = gap / expand(inverse_weight(x, real, floor) + offset, x)
    return jax.lax.stop_gradient(jnp.nan_to_num(gap))


def squared(x: Array, gradient: Array) -> Array:
    """A loss (B,...) with a given gradient in x: (x - sg(x - gradient))^2 / 2, DMD's form.

    Written without that difference, in which a small gradient would lose its digits.
    """
    gradient = jax.lax.stop_gradient(gradient)
    return gradient**2 / 2 + gradient * (x - jax.lax.stop_gradient(x))


def product(x: Array, gradient: Array) -> Array:
    """A loss (B,...) with a given gradient in x: sg(gradient) x, Diff-Instruct's form."""
    return jax.lax.stop_gradient(gradient) * x


FORMS = {"squared": squared, "product": product}
