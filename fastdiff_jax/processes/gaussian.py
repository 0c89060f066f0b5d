"""What every Gaussian process shares: drift, diffusion and the marginal, from scale and sigma."""

import jax
import jax.numpy as jnp

from fastdiff_jax.types import Array, Process, expand


def perturb(process: Process, x0: Array, t: Array, eps: Array) -> Array:
    """x_t = scale(t) (x0 + sigma(t) eps), all (B,...), t (B,)."""
    return expand(process.scale(t), x0) * (x0 + expand(process.sigma(t), x0) * eps)


def drift(process: Process, t: Array) -> Array:
    """f(t) = d ln scale / dt of dx = f(t) x dt + g(t) dw, elementwise over t."""
    # Not the derivative of the logarithm: an oscillating scale passes through zero.
    return _derivative(process.scale, t) / process.scale(t)


def diffusion(process: Process, t: Array) -> Array:
    """g(t) = scale sqrt(d sigma^2 / dt), elementwise over t (arXiv:2206.00364, eq. 33)."""
    return process.scale(t) * jnp.sqrt(_derivative(lambda s: process.sigma(s) ** 2, t))


def _derivative(function, t: Array) -> Array:
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
