"""What a waiting user sees: a bar over images with their rate and the time left."""

import sys

import jax
from tqdm import tqdm


def bar(total: int, start: int, show: bool = True) -> tqdm:
    """A bar of `total` images that starts at `start`; update it by the images of each step.

    Counting in images makes tqdm's own rate images/s and its estimate the time left. Shown by process 0 only,
    and seldom where the output is not a terminal, so that logs stay short.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=start,
        unit="img",
        unit_scale=True,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 10.0,
        disable=not show or jax.process_index() != 0,
    )


def note(text: str, show: bool = True) -> None:
    """One line above the bar."""
    if show and jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


def count(total: int, unit: str, show: bool = True) -> tqdm:
    """A bar of `total` equal pieces of work."""
    return tqdm(total=total, unit=unit, mininterval=0.2 if sys.stderr.isatty() else 10.0,
                disable=not show or jax.process_index() != 0)  # fmt: skip


def say(text: str) -> None:
    """A result for the user, on standard output, from process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)
