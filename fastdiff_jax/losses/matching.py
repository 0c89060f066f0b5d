"""Denoising score matching: what a teacher minimises, and what a fake score minimises on generated images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastdiff_jax import registry
from fastdiff_jax.losses import levels as laws
from fastdiff_jax.losses.levels import Levels
from fastdiff_jax.precond import denoiser
from fastdiff_jax.rng import stream
from fastdiff_jax.types import Array, Denoiser, Draws, Key, expand


class Objective(NamedTuple):
    """A training loss with its random numbers apart."""

    draw: Callable[
        [Key, tuple[int, ...]], Draws
    ]  # (key, (B,...)) -> {"level": (B,), "noise": (B,...)}
    loss: Callable[..., Array]  # (bound, x0 (B,...), draws, *, step=None) -> unreduced (B,...)
    bind: Callable[..., Any] = denoiser  # (model, params, cond, dropout) -> what `loss` is given
    ends: tuple[float, float] = (0.0, float("inf"))  # the noise levels that training meets
    weight: Callable[[Array], Array] | None = None  # sigma (B,) -> (B,), where the loss has such a factor


CAP, GROWTH = 5.0, 100.0  # of the weights: where it starts, and its growth until it is lifted


def weight_cap(step: Array, warmup: int) -> Array:
    """FDM's limit of the loss weights at a step: 5 * 100^(step / warmup) before step `warmup`, then none (inf).

    The authors' code counts loss calls, per process and from zero again when it resumes (arXiv:2306.06991).
    """
    step = jnp.asarray(step, jnp.result_type(float))
    return jnp.where(step < warmup, CAP * GROWTH ** (step / max(warmup, 1)), jnp.inf)


def denoising(levels: Levels, weight: Callable[[Array], Array], warmup: int = 0) -> Objective:
    """w(sigma) (D(x0 + sigma eps; sigma) - x0)^2, elementwise.

    With `guard`, samples in which the target or the prediction has a NaN contribute zeros, values and
    gradients (SiD's guard); the caller's divisor stays the full batch.

    Args:
      warmup: steps during which w is capped, see `weight_cap`; the loss then asks for the step.
    Raises: ValueError for a negative warm-up.
    """
    if warmup < 0 or warmup != int(warmup):
        raise ValueError(f"the warm-up of the loss weights is a number of steps; got {warmup}.")

    def draw(key, shape):
        level = levels.draw(stream(key, "level"), shape[:1])
        return {"level": level, "noise": jax.random.normal(stream(key, "noise"), shape)}

    def loss(denoise: Denoiser, x0, draws, *, guard=False, step=None):
        sigma = levels.sigma(draws["level"])
        predicted = denoise(x0 + expand(sigma, x0) * draws["noise"], sigma)
        if guard:
            x0, predicted = without_nan(x0, predicted)
        weights = weight(sigma)
        if warmup and step is None:
            raise ValueError("the objective warms its weights up, so its loss needs the step; set warmup=0.")
        if warmup:
            weights = jnp.minimum(weights, weight_cap(step, warmup))
        return expand(weights, x0) * (predicted - x0) ** 2

    return Objective(draw, loss, ends=levels.ends, weight=weight)


def without_nan(*arrays: Array) -> tuple[Array, ...]:
    """The (B,...) arrays with every sample zeroed in all of them if it has a NaN in any.

    Zeroing the inputs of the arithmetic, not its result, keeps NaN out of the gradient as well.
    """
    bad = sum(jnp.isnan(a).reshape(len(a), -1).any(1) for a in arrays) > 0
    return tuple(jnp.where(expand(bad, a), 0, a) for a in arrays)


def edm_weight(sigma_data: float) -> Callable[[Array], Array]:
    """(sigma^2 + sd^2) / (sigma sd)^2: unit weight for a network with EDM's preconditioning."""
    return lambda sigma: (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def edm(p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float = 0.5, warmup: int = 0) -> Objective:
    """Log-normal levels, weight (sigma^2 + sd^2) / (sigma sd)^2 (arXiv:2206.00364, Table 1)."""
    return denoising(laws.lognormal(p_mean, p_std), edm_weight(sigma_data), warmup)


def edm_grid(sigma_data: float = 0.5, first: int = 0, last: int = 999, steps: int = 1000) -> Objective:
    """EDM's weight on the levels of `levels.karras_grid`: DMD2's fake score (arXiv:2405.14867)."""
    return denoising(laws.karras_grid(first, last, steps), edm_weight(sigma_data))


def vp(beta_d: float = 19.9, beta_min: float = 0.1, eps: float = 1e-5, warmup: int = 0) -> Objective:
    """Noise prediction on the VP process: uniform time, weight 1 / sigma^2."""
    return denoising(laws.vp_time(beta_d, beta_min, eps), lambda s: 1 / s**2, warmup)


def ve(sigma_min: float = 0.02, sigma_max: float = 100.0, warmup: int = 0) -> Objective:
    """Noise prediction on the VE process: log-uniform levels, weight 1 / sigma^2."""
    return denoising(laws.log_uniform(sigma_min, sigma_max), lambda s: 1 / s**2, warmup)


def discrete(
    betas: str = "scaled_linear",
    beta_0: float | None = None,
    beta_1: float | None = None,
    steps: int = 1000,
    zero_snr: bool = False,
    prediction: str = "epsilon",
) -> Objective:
    """A discrete VP model: uniform labels, and the weight that is one on what its network predicts.

        epsilon: 1 / sigma^2 (arXiv:2006.11239, eq. 14),    v: 1 + 1 / sigma^2,    x0: 1

    Args:
      betas, beta_0, beta_1, steps, zero_snr: as `processes.discrete.alphas_cumprod`; steps is M.
      prediction: as `precond.discrete`.
    Raises: ValueError for bad betas, or another prediction.
    """
    if prediction not in PREDICTED:
        raise ValueError(f"a discrete model predicts {', '.join(PREDICTED)}; got {prediction!r}.")
    return denoising(laws.discrete(betas, beta_0, beta_1, steps, zero_snr), PREDICTED[prediction])


PREDICTED = {
    "epsilon": lambda sigma: 1 / sigma**2,
    "v": lambda sigma: 1 + 1 / sigma**2,
    "x0": jnp.ones_like,
}


OBJECTIVES = {"edm": edm, "edm_grid": edm_grid, "vp": vp, "ve": ve, "discrete": discrete}


def build(config) -> Objective:
    """The objective that `config.name` asks for, of any module of losses/; its other entries are arguments.

    Raises: ValueError naming the known ones.
    """
    return registry.choose(OBJECTIVES | registry.entries("losses", "OBJECTIVES"), config, "objective")
