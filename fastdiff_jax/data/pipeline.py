"""Batches for training: an infinite shuffled stream, exact to resume, one stream on all hosts."""

import atexit
import sys
from collections.abc import Iterator

import grain
import numpy as np

from fastdiff_jax.data.order import ORDERS
from fastdiff_jax.types import Data

READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # counted in batches


class Batches:
    """Random access to the batches themselves: a position is one number, and nothing is replayed.

    The stream is an entry of ORDERS. Global batch n is the stream's
    next `batch_size * count` rows, of which process `index` takes every count-th: what a step sees
    depends on neither the number of processes nor the number of read threads.
    """

    def __init__(
        self, data: Data, batch_size: int, seed: int, shard: tuple[int, int], order: str = "epochs"
    ):
        self.train, self.decode = data.train, data.decode  # all that worker processes are sent
        self.order = ORDERS[order](len(data.train), seed)
        index, count = shard
        self.offsets, self.stride = index + count * np.arange(batch_size), batch_size * count

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        batch = dict(rows(self.train, self.order(number * self.stride + self.offsets)))
        batch["label"] = np.asarray(batch["label"], np.int32)
        if "image" in batch:
            batch["image"] = self.decode(batch["image"])
        return batch


class Workers:
    """Batches made by `count` processes, each with every count-th of them.

    A position is the number of the next batch, as it is with threads: a run goes on with any number of workers.
    """

    def __init__(self, source: Batches, count: int):
        self.source, self.count, self.number = source, count, 0
        self.made = None
        atexit.register(self.close)  # grain complains of processes that outlive the interpreter

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self.made is None:
            left = grain.MapDataset.source(self.source)[self.number :]
            options = grain.MultiprocessingOptions(num_workers=self.count, per_worker_buffer_size=4)
            self.made = iter(left.to_iter_dataset(READ).mp_prefetch(options))
        batch = next(self.made)
        self.number += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, as JSON."""
        return {"next_index": self.number}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position, with new processes."""
        self.close()
        self.number = state["next_index"]

    def close(self) -> None:
        """Ends the processes; the next batch starts others."""
        if self.made is not None:
            self.made.close()
            self.made = None


def rows(source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Rows (B,) of a random access source, stacked; by the source's own `rows` if it has that."""
    if hasattr(source, "rows"):
        return source.rows(indices)
    elements = [source[int(index)] for index in indices]
    return {key: np.stack([element[key] for element in elements]) for key in elements[0]}


def batches(
    data: Data, batch_size: int, seed: int, *, shard: tuple[int, int] = (0, 1), order: str = "epochs",
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """An infinite stream of {"image": (B,...) float32 in model units, "label": (B,) int32}.

    Rows of another kind come as they are, but for the dtype of "label".

    Args:
      batch_size: of this process.
      shard: (index, count) of this process.
      order: an entry of ORDERS: "epochs", or "windowed" as EDM's code has it.
      workers: processes that read and decode; 0 for threads of this one. What comes is the same. absl's
        flags must be parsed, as grain reads them.
    Returns: an iterator whose get_state() and set_state() resume bit for bit, and which other
      processes' iterators complement without overlap.
    Raises: ValueError if an argument is out of range or unknown, or there are no images.
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
    if order not in ORDERS:
        raise ValueError(f"there is no order {order!r} of training images; known: {', '.join(ORDERS)}.")
    if workers < 0:
        raise ValueError(f"the number of workers is not negative; got {workers}.")
    source = Batches(data, batch_size, seed, shard, order)
    if workers:
        return Workers(source, workers)
    return iter(grain.MapDataset.source(source).to_iter_dataset(READ))
