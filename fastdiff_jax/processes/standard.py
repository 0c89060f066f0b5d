"""The three classical processes: EDM (sigma is time), variance preserving, variance exploding."""

import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Process


def edm(t_min: float = 0.002, t_max: float = 80.0) -> Process:
    """x_t = x0 + t eps: noise level and time are one (arXiv:2206.00364, section 3)."""
    return Process(jnp.ones_like, lambda t: t, lambda sigma: sigma, t_min, t_max)


def vp(beta_d: float = 19.9, beta_min: float = 0.1, eps: float = 1e-5) -> Process:
    """Linear-beta variance preserving diffusion, t in (0, 1].

        sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1),    scale = 1 / sqrt(1 + sigma^2)

    Source: Song et al. 2021 (arXiv:2011.13456); Karras et al. 2022 (arXiv:2206.00364), Table 1.
    """

    def exponent(t):
        return beta_d * t**2 / 2 + beta_min * t

    def inverse(sigma):
        # The root of beta_d t^2 / 2 + beta_min t = ln(1 + sigma^2), without its cancellation at small sigma.
        level = jnp.log1p(sigma**2)
        return 2 * level / (beta_min + jnp.sqrt(beta_min**2 + 2 * beta_d * level))

    return Process(
        scale=lambda t: jnp.exp(-exponent(t) / 2),
        sigma=lambda t: jnp.sqrt(jnp.expm1(exponent(t))),
        inverse=inverse,
        t_min=eps,
        t_max=1.0,
    )


def vp_level(t, beta_d: float = 19.9, beta_min: float = 0.1) -> np.ndarray:
    """The noise level of `vp` at times t (...), host float64; in general that of any two betas."""
    return np.sqrt(np.expm1(beta_d * np.square(t) / 2 + beta_min * np.asarray(t)))


def ve(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Process:
    """Variance exploding diffusion with t = sigma^2, so that g = 1 (arXiv:2206.00364, Table 1)."""
    return Process(jnp.ones_like, jnp.sqrt, jnp.square, sigma_min**2, sigma_max**2)


PROCESSES = {"edm": edm, "vp": vp, "ve": ve}
