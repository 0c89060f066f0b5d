"""Batches for training: infinite shuffled epochs, exact to resume, one stream on all hosts."""

import functools
import sys

import grain
import numpy as np

from fastdiff_jax.types import Data

READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # counted in batches


class Batches:
    """Random access to the batches themselves: a position is one number, and nothing is replayed.

    The stream is one epoch after the other, each in its own order. Global batch n is the stream's
    next `batch_size * count` rows, of which process `index` takes every count-th: what a step sees
    depends on neither the number of processes nor the number of read threads.
    """

    def __init__(self, data: Data, batch_size: int, seed: int, shard: tuple[int, int]):
        self.data, self.seed = data, seed
        index, count = shard
        self.offsets, self.stride = index + count * np.arange(batch_size), batch_size * count
        self.order = functools.lru_cache(maxsize=4)(self._order)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        epochs, places = np.divmod(number * self.stride + self.offsets, len(self.data.train))
        runs = [self.order(int(e))[places[epochs == e]] for e in np.unique(epochs)]
        batch = dict(rows(self.data.train, np.concatenate(runs)))
        batch["label"] = np.asarray(batch["label"], np.int32)
        if "image" in batch:
            batch["image"] = self.data.decode(batch["image"])
        return batch

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.data.train))


def rows(source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Rows (B,) of a random access source, stacked; by the source's own `rows` if it has that."""
    if hasattr(source, "rows"):
        return source.rows(indices)
    elements = [source[int(index)] for index in indices]
    return {key: np.stack([element[key] for element in elements]) for key in elements[0]}


def batches(
    data: Data, batch_size: int, seed: int, *, shard: tuple[int, int] = (0, 1)
) -> grain.DatasetIterator:
    """Infinite shuffled epochs of {"image": (B,...) float32 in model units, "label": (B,) int32}.

    Rows of another kind come as they are, but for the dtype of "label".

    Args:
      batch_size: of this process.
      shard: (index, count) of this process.
    Returns: an iterator whose get_state() and set_state() resume bit for bit, and which other
      processes' iterators complement without overlap.
    Raises: ValueError if the batch, the seed or the shard is out of range, or there are no images.
    """
    index, count = shard
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive; got {batch_size}.")
    if seed < 0:
        raise ValueError(f"the seed of the batches must not be negative; got {seed}.")
    if not 0 <= index < count:
        raise ValueError(f"there is no shard {index} of {count}; it runs from 0 to {count - 1}.")
    if not len(data.train):
        raise ValueError(f"data {data.name} has no training images.")
    source = Batches(data, batch_size, seed, shard)
    return iter(grain.MapDataset.source(source).to_iter_dataset(READ))
