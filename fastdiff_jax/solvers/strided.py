"""DDIM as diffusers takes it: steps of a fixed number of labels, whether or not the next call is made there."""

import numpy as np

from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers import multistep
from fastdiff_jax.types import Solver


def ddim(abar: np.ndarray, stride: int) -> Solver:
    """DDIM from label t to s = t - stride, s < 0 being 0, in a VP model's own coordinates:

        x0 = (x - sqrt(1 - abar_t) eps) / sqrt(abar_t),    x' = sqrt(abar_s) x0 + sqrt(1 - abar_s) eps

    The state after the step is x' / sqrt(abar) of the level that the run says comes next, not necessarily of s:
    with strides that do not meet the levels it leaves the flow. Onto zero it is x' itself.

    Args:
      abar: (M,) cumulated alphas; the levels of a run are of this table.
      stride: M // N for N steps, diffusers' rule.
    Raises: ValueError, when prepared, for levels that are not in the table.
    """

    def table(sigmas):
        label = discrete.places(sigmas[:-1], abar)
        landed = abar[np.maximum(label - stride, 0)]
        up = np.sqrt(1 + sigmas[1:] ** 2)  # 1 / sqrt(abar) of the next level
        a = up * np.sqrt(1 - landed) / sigmas[:-1]
        return multistep.Row(a, (up * np.sqrt(landed) - a)[:, None])

    return multistep.multistep(table)
