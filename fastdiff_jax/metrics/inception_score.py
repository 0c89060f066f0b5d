"""Inception Score: how sure a classifier is of each image, and how unsure of all together; host float64."""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from fastdiff_jax.metrics.frechet import checked, masked
from fastdiff_jax.types import Metric

SPLITS = 10


class Sums(NamedTuple):
    """What is known of every split: images seen, sum of p (splits,K), and of sum_c p ln p (splits,)."""

    seen: int
    shares: np.ndarray | None
    information: np.ndarray


def bounds(num: int, splits: int = SPLITS) -> np.ndarray:
    """(splits + 1,) first rows of contiguous splits, split i = rows [i N // S, (i+1) N // S).

    Raises: ValueError if there are fewer images than splits.
    """
    if not 1 <= splits <= num:
        raise ValueError(f"an inception score in {splits} splits needs as many images or more; got {num}.")
    return np.arange(splits + 1) * num // splits


def by_split(logits: np.ndarray, splits: int = SPLITS) -> np.ndarray:
    """(splits,) scores exp(mean_i sum_c p_ic ln(p_ic / q_c)), q the mean of p over the split.

    The score is their mean, its spread their population deviation. It depends on the number of splits and
    on the images' order: that of their seeds, with random labels.

    Args: logits (N,K), finite; of Inception all 1008, WITHOUT bias.
    Raises: ValueError as `bounds`, and for logits that are no finite matrix.
    Source: Salimans et al. 2016 (arXiv:1606.03498).
    """
    logits = checked(logits)
    return _scores(_added(_empty(splits), logits, bounds(len(logits), splits)), bounds(len(logits), splits))


def metric(num: int, splits: int = SPLITS) -> Metric:
    """The score of `num` images as a streaming metric; `update` reads batch["logits"], see `frechet.metric`.

    `compute` gives mean and population standard deviation over the splits, {"is", "is_std"}.

    Raises: ValueError as `bounds`; `compute`, if another number of images has come.
    """
    ends = bounds(num, splits)

    def update(sums, frozen, batch):
        del frozen
        return _added(sums, checked(masked(batch, "logits")), ends)

    def compute(sums):
        if sums.seen != num:
            raise ValueError(f"the inception score of {num} images was given {sums.seen}.")
        found = _scores(sums, ends)
        return {"is": float(found.mean()), "is_std": float(found.std())}

    return Metric(lambda: _empty(splits), update, compute)


def _empty(splits):
    return Sums(0, None, np.zeros(splits))


def _added(sums, logits, ends):
    logs = log_softmax(logits, axis=1)
    shares = np.zeros((len(ends) - 1, logits.shape[1])) if sums.shares is None else sums.shares.copy()
    information, last = sums.information.copy(), sums.seen + len(logits)
    for i in range(len(shares)):
        part = logs[max(ends[i] - sums.seen, 0) : max(ends[i + 1] - sums.seen, 0)]
        weights = np.exp(part)
        shares[i] += weights.sum(0)
        information[i] += np.sum(np.where(weights > 0, weights * part, 0))  # 0 ln 0 = 0
    return Sums(last, shares, information)


def _scores(sums, ends):
    counts = np.diff(ends)
    whole = sums.shares / counts[:, None]
    entropy = np.array([np.sum(q[q > 0] * np.log(q[q > 0])) for q in whole])
    return np.exp(sums.information / counts - entropy)
