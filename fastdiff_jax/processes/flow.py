"""Rectified flow's levels: x = sigma eps + (1 - sigma) x0, sigma in (0, 1], with the shift of large images.

Source: Esser et al. 2024 (arXiv:2403.03206), section 5.3.2; Stable Diffusion 3's scheduler as diffusers has it.
"""

import numpy as np

STEPS = 1000  # training levels; the network is told STEPS sigma
SHIFT = 3.0  # Stable Diffusion 3's at 1024x1024


def shifted(sigma: np.ndarray, shift: float = SHIFT) -> np.ndarray:
    """shift s / (1 + (shift - 1) s): levels moved towards noise, as larger images need; 0 and 1 stay.

    Raises: ValueError if the shift is not positive.
    """
    if not shift > 0:
        raise ValueError(f"a flow's shift is a positive factor, 1 for none; got {shift}.")
    sigma = np.asarray(sigma, np.float64)
    return shift * sigma / (1 + (shift - 1) * sigma)


def trained(shift: float = SHIFT, steps: int = STEPS) -> np.ndarray:
    """(M,) levels of training, shifted k/M for k = M..1: decreasing from 1, host float64."""
    return shifted(np.arange(steps, 0, -1) / steps, shift)


def sigmas(count: int, shift: float = SHIFT, steps: int = STEPS) -> np.ndarray:
    """(N+1,) levels of N sampling steps: evenly spaced between the trained ends, shifted, and a last 0.

    The ends are shifted already, and are shifted again: with shift 3, four steps are at 1, 0.858, 0.602, 0.009.
    One step is from 1 to 0.

    Raises: ValueError unless N is a whole number, at least one.
    """
    if count < 1 or count != int(count):
        raise ValueError(f"a flow is sampled in a whole number of steps, at least one; got {count}.")
    ends = trained(shift, steps)[[0, -1]]
    return np.append(shifted(np.linspace(*ends, int(count)), shift), 0.0)


def labels(levels: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """What the network is told at `levels`: steps sigma."""
    return steps * np.asarray(levels)
