"""Trajectory matching: a student's Euler step should land where its teacher's fine trajectory passes.

Source: Zhou et al. 2024 (arXiv:2409.19681), Alg. 1.
"""

import jax.numpy as jnp

from fastdiff_jax.types import Array, Denoiser, expand


def reached(
    denoise: Denoiser, x: Array, sigma: float, sigma_next: float, known: Array | None = None
) -> Array:
    """Where one Euler step from x (B,...) at sigma leads at sigma_next: x + (sigma_next - sigma) eps.

        eps = (x - x0) / sigma,    x0 = denoise(x, sigma)

    Args:
      sigma, sigma_next: levels, () or (B,); sigma is positive.
      known: x0 (B,...) if it is known without a call (an analytical first step).
    """
    x0 = denoise(x, sigma) if known is None else known
    kept = sigma_next / sigma  # of levels on the host, still in their precision
    return expand(kept, x) * x + expand(1 - kept, x) * x0


def elements(reached: Array, target: Array, norm: str = "l1") -> Array:
    """|reached - target| or its square, elementwise (B,...).

    SFD sums it over an image and takes the mean over the batch. Its gradient in x0 is then weighted with the
    step's relative length (sigma - sigma_next) / sigma and with nothing else.
    Raises: ValueError for a norm out of NORMS.
    """
    check_norm(norm)
    return NORMS[norm](reached - target)


def check_norm(norm: str) -> None:
    """Raises ValueError naming the known norms, if it is none of them."""
    if norm not in NORMS:
        raise ValueError(f"no trajectory loss {norm!r}; known: {', '.join(NORMS)}.")


NORMS = {"l1": jnp.abs, "l2": jnp.square}
