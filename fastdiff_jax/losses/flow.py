"""Flash Diffusion's losses on rectified flow, in its own coordinates: x = sigma eps + (1 - sigma) x0.

A velocity is (x (B,...), sigma () or (B,)) -> v = eps - x0; sigma reaches 1, pure noise, which has no place on
the scale x0 + sigma eps of denoisers. Distances and adversarial losses are those of other students, on what
`jumped` makes, and guidance is `guidance.mixed`, as a velocity is linear in its x0.

Source: Chadebec et al. 2024 (arXiv:2406.02347), the authors' code for Stable Diffusion 3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fastdiff_jax.losses import identity
from fastdiff_jax.types import Array, expand

Velocity = Callable[[Array, Array], Array]


def noised(x0: Array, sigma: Array, noise: Array) -> Array:
    """sigma noise + (1 - sigma) x0, sigma () or (B,): noise alone at sigma = 1."""
    return expand(sigma, x0) * noise + (1 - expand(sigma, x0)) * x0


def jumped(velocity: Velocity, x: Array, sigma: Array) -> Array:
    """x - sigma v: where a straight flow from (x, sigma) ends. Flash's student, without boundary scalings."""
    return x - expand(sigma, x) * velocity(x, sigma)


def direction(x: Array, real: Array, fake: Array, offset: float = 1e-5) -> Array:
    """Distribution matching's gradient in x before reduction, (B,...), from velocities at a noised x.

        (v_real - v_fake) / (mean |x - v_real| + offset)

    As published: without the factor sigma that makes x0 of v, and with v_real where its x0 belongs.
    """
    weight = identity.inverse_weight(x, real, 0.0) + offset
    return jax.lax.stop_gradient(jnp.nan_to_num((real - fake) / expand(weight, x)))
