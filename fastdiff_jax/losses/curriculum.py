"""Which level of a grid a step trains at, and which stage it belongs to: Flash Diffusion's curriculum.

Source: Chadebec et al. 2024 (arXiv:2406.02347), section 4.1, with the authors' code where paper and code part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WEIGHTS = ("distill", "matching", "adversarial")


class Stages(NamedTuple):
    """The curriculum, one entry a stage in each column; the defaults are published, `adversarial` for SD1.5."""

    steps: tuple[int, ...] = (2500,) * 4  # of which the last stage goes on for ever
    modes: tuple[tuple[float, ...], ...] = (  # weights of n modes at the levels 0, K/n, 2K/n, ...
        (0.0, 0.0, 0.5, 0.5), (0.1, 0.3, 0.3, 0.3), (0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.2, 0.2),
    )  # fmt: skip
    distill: tuple[float, ...] = (1.0,) * 4  # weights of the student's three losses
    matching: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7)  # distribution matching
    adversarial: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)  # PixArt: 0, .05, .1, .2; SD3: 0, .1, .3, .5

    def weights(self, stage: int) -> dict[str, float]:
        """The weights of the losses in a stage."""
        return {name: getattr(self, name)[stage] for name in WEIGHTS}

    def check(self, owner: str) -> None:
        """Raises ValueError, in the name of `owner`, for columns of different lengths and impossible values."""
        count = len(self.steps)
        for name in ("modes", *WEIGHTS):
            if len(getattr(self, name)) != count or not count:
                raise ValueError(
                    f"{owner}: stages.steps has {count} entries, stages.{name} {len(getattr(self, name))}; "
                    "give each column one a stage."
                )
        if min(self.steps) < 1:
            raise ValueError(f"{owner}: a stage has a step or more; got stages.steps {tuple(self.steps)}.")
        weights = np.array([getattr(self, name) for name in WEIGHTS])
        if (weights < 0).any() or not weights.sum(0).all():
            given = ", ".join(f"{name} {tuple(getattr(self, name))}" for name in WEIGHTS)
            raise ValueError(
                f"{owner}: weights of losses are not negative, and in each stage one is positive; got {given}."
            )

    def check_length(self, total: int, owner: str) -> None:
        """Raises ValueError, in the name of `owner`, if `total` steps end before the last stage begins."""
        for stage, first in enumerate(np.cumsum([0, *self.steps[:-1]])):
            if first >= total:
                raise ValueError(
                    f"{owner}: stage {stage} begins at step {first}, training ends at {total}; shorten "
                    "stages.steps, or lengthen train.steps."
                )


def mixture(count: int, weights: Sequence[float], width: float = 0.5) -> np.ndarray:
    """(K,) shares of the levels 0..K-1 of a grid, 0 the noisiest, around n modes.

        p(i) prop. to sum_m w_m exp(-(i - m floor(K/n))^2 / width),    m = 0..n-1

    The modes are the levels that an n-step sampler calls the student at.

    Args:
      count: K.
      weights: n of them, none negative.
      width: twice the variance of a mode, in levels squared, as the authors' code has it.
    Raises: ValueError for impossible arguments, and if all shares vanish.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not 1 <= len(weights) <= count or (weights < 0).any():
        raise ValueError(f"modes have 1 to {count} weights, none negative; got {weights.tolist()}.")
    if not width > 0:
        raise ValueError(f"the width of a mode is positive; got {width}.")
    modes = np.arange(len(weights)) * (count // len(weights))
    return _normalised(np.exp(-((np.arange(count)[:, None] - modes) ** 2) / width) @ weights)


def uniform(count: int, weights: Sequence[float] = (), width: float = 0.5) -> np.ndarray:
    """(K,) equal shares; weights and width are not read."""
    return np.full(count, 1 / count)


def gaussian(count: int, weights: Sequence[float] = (), width: float = 0.5) -> np.ndarray:
    """(K,) shares exp(-(i - K/2)^2 / K), normalised; weights and width are not read."""
    return _normalised(np.exp(-((np.arange(count) - count / 2) ** 2) / count))


LAWS = {"mixture": mixture, "uniform": uniform, "gaussian": gaussian}


def check_modes(count: int, weights: Sequence[float], owner: str) -> None:
    """Raises ValueError, in the name of `owner`, if the modes of a mixture are not what samplers visit."""
    if count % len(weights):
        raise ValueError(
            f"{owner}: {len(weights)} modes do not divide a grid of {count} levels, so they are not where a "
            "sampler of as many steps calls; use a multiple."
        )


def _normalised(shares):
    if not shares.sum() > 0:
        raise ValueError("a step trains at one level, so some weight of a mode must be positive.")
    return shares / shares.sum()


def by_steps(step: int, lengths: Sequence[int]) -> int:
    """The stage of a step, both counted from 0: stage s has lengths[s] steps, and the last goes on for ever."""
    return min(int(np.searchsorted(np.cumsum(lengths), step, side="right")), len(lengths) - 1)


def by_reference(iteration: int, lengths: Sequence[int]) -> int:
    """The stage by the authors' code, whose iterations count from 1, two a batch (student and discriminator).

    Each stage ends an iteration early, and the one at which all have passed belongs to stage 0 again.
    """
    ends = np.cumsum(lengths)
    if iteration > ends[-1]:
        return len(lengths) - 1
    return int(np.argmax(iteration < ends))
