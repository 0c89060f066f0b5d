"""Orders of training images, each an infinite stream of row numbers that any position can be read of."""

import functools
import threading
from collections.abc import Iterator

import numpy as np

BLOCK = 4096  # numbers that a windowed order makes at a time


class Epochs:
    """One epoch after the other, each a permutation of its own; a position costs no more than its epoch."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.epoch = functools.lru_cache(maxsize=4)(self._epoch)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The rows (B,) at increasing `positions` (B,) of the stream."""
        epochs, places = np.divmod(positions, self.size)
        return np.concatenate([self.epoch(int(e))[places[epochs == e]] for e in np.unique(epochs)])

    def _epoch(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number)).permutation(self.size)

    def __getstate__(self):
        return self.size, self.seed

    def __setstate__(self, state):
        self.__init__(*state)


class Windowed:
    """EDM's order, `windowed`. It is sequential: a resumed run walks it from the start, as does going far back.

    That takes some seconds for ten million images.
    """

    KEPT = 64  # blocks behind the newest: reading threads may ask out of order

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.lock = size, seed, threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self.stream, self.blocks, self.next = windowed(self.size, self.seed), {}, 0

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The rows (B,) at `positions` (B,) of the stream."""
        numbers, places = np.divmod(positions, BLOCK)
        rows = np.empty(len(positions), np.int64)
        with self.lock:
            for number in np.unique(numbers):
                rows[numbers == number] = self._block(int(number))[places[numbers == number]]
        return rows

    def _block(self, number: int) -> np.ndarray:
        if number < self.next and number not in self.blocks:
            self._restart()
        while self.next <= number:
            self.blocks[self.next] = np.fromiter(self.stream, np.int64, BLOCK)
            self.blocks.pop(self.next - self.KEPT, None)
            self.next += 1
        return self.blocks[number]

    def __getstate__(self):
        return self.size, self.seed

    def __setstate__(self, state):
        self.__init__(*state)


ORDERS = {"epochs": Epochs, "windowed": Windowed}


def windowed(size: int, seed: int, window: float = 0.5, shuffle: bool = True) -> Iterator[int]:
    """A shuffled list that is walked round and round, and mixed behind the walker.

    At step i the entry at a = i mod n is emitted, then swapped with one of the W = round(n window) entries
    that end at it, drawn uniformly. Rank r of w processes takes the steps i with i mod w = r.

    Args:
      shuffle: without, the numbers 0 .. n - 1 in order, again and again.
    Source: the data sampler of EDM (arXiv:2206.00364, code), with numpy's legacy generator.
    """
    order, width = np.arange(size), int(np.rint(size * window))
    random = np.random.RandomState(seed % 2**32)
    if shuffle:
        random.shuffle(order)
    order, mixed = order.tolist(), shuffle and width >= 2
    while True:
        # One call for a round gives the numbers of one call each.
        back = random.randint(width, size=size).tolist() if mixed else None
        for a in range(size):
            yield order[a]
            if mixed:
                b = (a - back[a]) % size
                order[a], order[b] = order[b], order[a]


def split(indices: np.ndarray, most: int, world: int) -> list[np.ndarray]:
    """Even batches of at most `most` images for `world` processes: batch b is for process b mod world.

    Their number is a multiple of `world`, as processes work in step, so some may be empty; the first ones are
    longer by one where it does not divide.
    """
    rounds = -(-len(indices) // (most * world))
    return np.array_split(indices, rounds * world) if rounds else []
