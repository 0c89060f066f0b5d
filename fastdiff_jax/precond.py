"""Preconditioning: from a raw network to the `Denoiser` that solvers and losses see.

    D(x; sigma, cond) = c_skip x + c_out F(c_in x; c_noise, cond),    x = x0 + sigma eps
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.processes import discrete as processes
from fastdiff_jax.processes.standard import vp as vp_process
from fastdiff_jax.types import Array, Coefficients, Cond, Denoiser, Model, Params, Precond, expand

C1, C2 = 0.001, 0.008  # improved-DDPM's floor on alpha ratios and its offset


def same(sigma: Array) -> Array:
    """The rounding of a model trained on a continuum of noise levels."""
    return sigma


def edm(sigma_data: float = 0.5) -> Precond:
    """Scalings that hold network input and training target at unit variance.

    Args:
      sigma_data: data standard deviation; 0.5 suits images in [-1, 1].
    Raises: ValueError if sigma_data is not positive.
    Source: Karras et al. 2022 (arXiv:2206.00364), Table 1, last column.
    """
    if sigma_data <= 0:
        raise ValueError(f"sigma_data is a standard deviation, so positive; got {sigma_data}.")

    def coefficients(sigma):
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        return Coefficients(skip=(sigma_data / total) ** 2, out=sigma * sigma_data / total,
                            inp=1 / total, noise=jnp.log(sigma) / 4)  # fmt: skip

    return Precond(coefficients, same, 0.0, float("inf"))


def vp(beta_d: float = 19.9, beta_min: float = 0.1, steps: int = 1000, eps: float = 1e-5) -> Precond:
    """Noise prediction on the VP process (arXiv:2206.00364, Table 1, first column); c_noise = (M-1) t."""
    process = vp_process(beta_d, beta_min, eps)

    def coefficients(sigma):
        ones = jnp.ones_like(sigma)
        return Coefficients(ones, -sigma, 1 / jnp.sqrt(sigma**2 + 1), (steps - 1) * process.inverse(sigma))

    low, high = (float(np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t))) for t in (eps, 1.0))
    return Precond(coefficients, same, low, high)


def ve(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Precond:
    """Noise prediction on the VE process (arXiv:2206.00364, Table 1, second column)."""

    def coefficients(sigma):
        ones = jnp.ones_like(sigma)
        return Coefficients(ones, sigma, ones, jnp.log(sigma / 2))

    return Precond(coefficients, same, sigma_min, sigma_max)


def iddpm_table(steps: int = 1000, c1: float = C1, c2: float = C2) -> np.ndarray:
    """(M+1,) noise levels u_0 > ... > u_M = 0 of improved DDPM, host float64.

        u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, c1) - 1),   abar_j = sin^2(pi/2 j / (M (1 + c2)))

    Source: Karras et al. 2022 (arXiv:2206.00364), Table 1, third column.
    """
    alpha_bar = np.sin(np.pi / 2 * np.arange(steps + 1) / (steps * (1 + c2))) ** 2
    table = np.zeros(steps + 1)
    for j in range(steps, 0, -1):
        ratio = max(alpha_bar[j - 1] / alpha_bar[j], c1)
        table[j - 1] = np.sqrt((table[j] ** 2 + 1) / ratio - 1)
    return table


def iddpm(steps: int = 1000) -> Precond:
    """Noise prediction on improved DDPM's discrete levels; the network's learned variance is dropped.

    c_noise = M - 1 - j*, with j* the nearest entry of `iddpm_table`; `round` returns that entry.
    """
    table = iddpm_table(steps)

    def nearest(sigma):
        levels = jnp.asarray(table, jnp.result_type(float))
        return jnp.argmin(jnp.abs(jnp.asarray(sigma)[..., None] - levels), axis=-1)

    def coefficients(sigma):
        ones = jnp.ones_like(sigma)
        index = (steps - 1 - nearest(sigma)).astype(sigma.dtype)
        return Coefficients(ones, -sigma, 1 / jnp.sqrt(sigma**2 + 1), index)

    def rounded(sigma):
        return jnp.asarray(table, jnp.result_type(float))[nearest(sigma)]

    return Precond(coefficients, rounded, float(table[steps - 1]), float(table[0]))


def discrete(
    betas: str = "scaled_linear",
    beta_0: float | None = None,
    beta_1: float | None = None,
    steps: int = 1000,
) -> Precond:
    """Noise prediction on a discrete VP model whose label is continued between the levels; Stable Diffusion's.

        c_skip = 1,  c_out = -sigma,  c_in = 1 / sqrt(1 + sigma^2),  c_noise = M tau(sigma) - 1

    with the piecewise linear tau of `processes.discrete.process`: at a trained level, c_noise is its label.

    Args:
      betas, beta_0, beta_1, steps: as `processes.discrete.alphas_cumprod`; steps is M.
    Raises: ValueError for bad betas.
    Source: Rombach et al. 2022 (arXiv:2112.10752), in the coordinates of arXiv:2206.00364, Table 1.
    """
    abar = processes.alphas_cumprod(betas, steps, beta_0, beta_1)
    process = processes.process(abar)
    low, high = map(float, processes.sigmas(abar[[0, -1]]))

    def coefficients(sigma):
        label = steps * process.inverse(sigma) - 1
        return Coefficients(jnp.ones_like(sigma), -sigma, 1 / jnp.sqrt(1 + sigma**2), label)

    return Precond(coefficients, same, low, high)


def identity() -> Precond:
    """The network is the denoiser; it receives x and sigma as they are. For analytic teachers."""

    def coefficients(sigma):
        return Coefficients(jnp.zeros_like(sigma), *(jnp.ones_like(sigma),) * 2, sigma)

    return Precond(coefficients, same, 0.0, float("inf"))


PRECONDS = {"edm": edm, "vp": vp, "ve": ve, "iddpm": iddpm, "discrete": discrete,
            "identity": identity}


def build(config) -> Precond:
    """The preconditioner that `config.name` asks for; its other entries are arguments.

    Raises: ValueError naming the known ones.
    """
    return registry.choose(PRECONDS, config, "preconditioner")


def denoiser(model: Model, params: Params, cond: Cond = {}, dropout=None) -> Denoiser:
    """Binds weights and condition: (x (B,...), sigma () or (B,)) -> x0 (B,...)."""

    def denoise(x, sigma):
        c = _coefficients(model, x, sigma)
        return _output(c, x, model.network.apply(params, expand(c.inp, x) * x, c.noise, cond, dropout=dropout))

    return denoise


def tapped(model: Model, params: Params, cond: Cond, taps: Sequence[str]) -> Callable:
    """As `denoiser`, and the network's features with it: (x, sigma) -> (x0, {tap: features (B,...)}).

    Raises: ValueError if no tap is named, or the network has not one that is.
    """
    if not taps:
        raise ValueError("a tapped denoiser needs the name of a tap; without features, use denoiser.")

    def denoise(x, sigma):
        c, taken = _coefficients(model, x, sigma), tuple(taps)
        raw, features = model.network.apply(params, expand(c.inp, x) * x, c.noise, cond, taps=taken)
        return _output(c, x, raw), features

    return denoise


def _coefficients(model, x, sigma):
    return model.precond.coefficients(jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1]))


def _output(c, x, raw):
    raw = raw[..., : x.shape[-1]]  # improved-DDPM networks also predict a variance
    return expand(c.skip, x) * x + expand(c.out, x) * raw.astype(x.dtype)
