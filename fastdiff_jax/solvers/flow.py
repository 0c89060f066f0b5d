"""Solvers of rectified flow in its own coordinates, x = sigma eps + (1 - sigma) x0 with sigma in [0, 1].

Pure noise, sigma = 1, has no place on the scale x0 + sigma eps, so these solvers stand outside of the waist:
`driver` carries their states as any other's, and what it is given is a velocity (x, sigma) -> v = eps - x0.
"""

from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.types import Solver, expand


def euler() -> Solver:
    """x' = x + (sigma' - sigma) v (arXiv:2209.03003)."""
    return Solver(_euler, guessed=False)


def jump(renoise: bool = True) -> Solver:
    """A jump to the data, f = x - sigma v, and up again to the next level:

        x' = sigma' z + (1 - sigma') f,    z new noise or, without `renoise`, the jump's own, f + v

    A step onto zero ends in f. Source: Flash Diffusion's sampler for SD3 (arXiv:2406.02347, the authors' code).
    """
    return Solver(_renoised if renoise else _euler, guessed=False)


def _euler(velocity, _, x, at, *, plan):
    return x + expand(at.sigma_next - at.sigma, x) * predict(velocity, x, at), None


def _renoised(velocity, _, x, at, *, plan):
    if at.noise is None:
        raise ValueError(
            "a jump with new noise draws it at every step; pass noise, e.g. driver.per_image(keys, shape)."
        )
    data = x - expand(at.sigma, x) * predict(velocity, x, at)
    share = expand(at.sigma_next, x)
    return share * at.noise(0) + (1 - share) * data, None
