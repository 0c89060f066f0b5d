"""From denoiser to denoiser: guidance, thresholding, and the value that stands in for a first call."""

import jax.numpy as jnp

from fastdiff_jax.types import Array, Denoiser, expand

QUANTILE = 0.995


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance: D = D_u + scale (D_c - D_u); two network calls but for the scales 0 and 1.

    Args:
      scale: 1 is the conditional model, 0 the unconditional one; "1 + w" where a text writes w.
    Raises: ValueError for a negative scale.
    Source: Ho & Salimans 2022 (arXiv:2207.12598), eq. 6.
    """
    if scale < 0:
        raise ValueError(f"a guidance scale is not negative; got {scale}.")
    if scale in (0, 1):
        return conditional if scale else unconditional

    return mixed(conditional, unconditional, scale)


def mixed(conditional: Denoiser, unconditional: Denoiser, scale: Array) -> Denoiser:
    """`guided` by a scale () that may be traced: always two network calls."""

    def denoise(x, sigma):
        base = unconditional(x, sigma)
        return base + scale * (conditional(x, sigma) - base)

    return denoise


def interval(
    conditional: Denoiser, unconditional: Denoiser, scale: float, low: float, high: float
) -> Denoiser:
    """`guided` where low < sigma <= high, else the conditional model: guidance where it helps.

    Both are called at every level, as one compiled body serves all: two network calls each time.

    Raises: ValueError for an empty interval or a negative scale.
    Source: Kynkaanniemi et al. 2024 (arXiv:2404.07724), eq. 5.
    """
    if not 0 <= low < high:
        raise ValueError(f"guidance acts where low < sigma <= high; got low {low}, high {high}.")
    if scale < 0:
        raise ValueError(f"a guidance scale is not negative; got {scale}.")

    def denoise(x, sigma):
        sigma = jnp.asarray(sigma)
        acts = expand((low < sigma) & (sigma <= high), x)
        base, aimed = unconditional(x, sigma), conditional(x, sigma)
        return jnp.where(acts, base + scale * (aimed - base), aimed)

    return denoise


def dynamic_threshold(x0: Array, quantile: float = QUANTILE) -> Array:
    """Predictions (B,...) pulled into [-1, 1] where their outermost values leave it.

        s = max(1, quantile of |x0| over an image),    x0 -> clip(x0, -s, s) / s

    Source: Saharia et al. 2022 (arXiv:2205.11487), section 2.3; the quantile interpolates linearly.
    """
    size = jnp.abs(x0.reshape(len(x0), -1)).astype(jnp.promote_types(x0.dtype, jnp.float32))
    s = expand(jnp.maximum(jnp.quantile(size, quantile, axis=1), 1.0).astype(x0.dtype), x0)
    return jnp.clip(x0, -s, s) / s


def thresholded(denoise: Denoiser, quantile: float = QUANTILE) -> Denoiser:
    """The denoiser with `dynamic_threshold` on what it predicts; for images in [-1, 1].

    Raises: ValueError unless 0 < quantile <= 1.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"a threshold's quantile is in (0, 1]; got {quantile}.")
    return lambda x, sigma: dynamic_threshold(denoise(x, sigma), quantile)


def gaussian_guess(x: Array, sigma: Array) -> Array:
    """x0 (B,...) of data with unit variance and no other structure: what AFS takes for a first call.

        eps = x / sqrt(1 + sigma^2),    x0 = x - sigma eps = x / (r (r + sigma)),  r = sqrt(1 + sigma^2)

    Good where noise drowns the data, at the first level of a sampler. Source: Dockhorn et al. 2022
    (arXiv:2210.05475), appendix; Zhou et al. 2024 (arXiv:2312.00094), section 4.
    """
    sigma = expand(sigma, x)
    root = jnp.sqrt(1 + sigma**2)
    return x / (root * (root + sigma))  # the difference cancels in float32
