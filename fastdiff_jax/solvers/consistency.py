"""Sampling with consistency functions, which jump from any level to the data: latent consistency's few steps.

Source: Luo et al. 2023 (arXiv:2310.04378), Alg. 1; Song et al. 2023 (arXiv:2303.01469), Alg. 1.
"""

from typing import NamedTuple

import numpy as np

from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.solvers.stochastic import noised
from fastdiff_jax.types import Array, Solver, expand


class Row(NamedTuple):
    """Coefficients of one step, or of all with a leading axis N."""

    scale: Array  # () of x before the call
    ratio: Array  # () sigma' / sigma
    spread: Array  # () sigma'


def lcm(renoise: bool = True, pure: bool = True) -> Solver:
    """A jump to the data and back up to the next level, with new noise or with what the jump took away.

        renoise: x' = f + sigma' z,    else: x' = f + sigma' (x - f) / sigma,    f = f(x; sigma)

    What it is given as denoiser should be a consistency function: with a posterior mean, new noise makes too
    little variance. Noise is drawn at every step; one onto zero adds none. Without renoise it is DDIM with f.

    Args:
      pure: the first x is taken as sigma_0 times unit noise, and scaled to what a VP model starts from, unit
        noise in its own coordinates: x sqrt(1 + sigma_0^2) / sigma_0.
    """

    def table(sigmas):
        scale = np.ones(len(sigmas) - 1)
        if pure:
            scale[0] = np.sqrt(1 + sigmas[0] ** -2.0)
        return Row(scale, sigmas[1:] / sigmas[:-1], sigmas[1:])

    return Solver(renoised if renoise else kept, table=table, guessed=not pure)


def renoised(consistent, _, x, at, *, plan):
    """The step that adds new noise."""
    return noised(predict(consistent, expand(at.row.scale, x) * x, at), at, "lcm with renoise"), None


def kept(consistent, _, x, at, *, plan):
    """The step that keeps its noise."""
    x = expand(at.row.scale, x) * x
    jumped = predict(consistent, x, at)
    return jumped + expand(at.row.ratio, x) * (x - jumped), None


SOLVERS = {"lcm": lcm}
JUMPS = {"lcm": lcm}  # solvers of consistency functions: exact on those, whatever the number of steps
