"""The batches of a run, as its config asks for them, and how fast they come."""

import itertools
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags

from fastdiff_jax import rng
from fastdiff_jax.data import pipeline
from fastdiff_jax.runtime import progress
from fastdiff_jax.runtime.assemble import Job


def batches(job: Job) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the training batches. Raises: ValueError as `pipeline.batches`."""
    train, shard = job.config.train, (jax.process_index(), jax.process_count())
    workers = train.get("workers", 0)
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads flags of its own; commands parse theirs apart
    return pipeline.batches(
        job.data, train.batch_size // shard[1], job.config.seed, shard=shard,
        order=train.get("order", "epochs"), workers=workers,
    )  # fmt: skip


def measure(job: Job, steps: int) -> None:
    """Prints images per second that are read, and that are read and augmented if the config says so."""
    stream, size = batches(job), job.config.train.batch_size // jax.process_count()
    begun = time.perf_counter()
    next(stream)
    first = time.perf_counter() - begun
    read = rate(stream, steps, size)
    told = f"input of {size}: first batch {first:.2f} s, then {read:.4g} images/s ({steps} batches)"
    if job.parts.augment is not None:
        pipe = job.parts.augment
        changed = jax.jit(lambda key, images: pipe.apply(images, pipe.draw(key, len(images))))
        augmented = (changed(rng.root(0, "train"), batch["image"]) for batch in stream)
        begun = time.perf_counter()
        jax.block_until_ready(next(augmented))
        compiled = time.perf_counter() - begun
        told += f"; augmented {rate(augmented, steps, size):.4g} images/s (compile {compiled:.1f} s)"
    progress.say(told)
    if hasattr(stream, "close"):
        stream.close()


def rate(stream: Iterator, steps: int, size: int) -> float:
    """Images per second of `steps` batches."""
    begun = time.perf_counter()
    for batch in itertools.islice(stream, steps):
        jax.block_until_ready(batch)
    return steps * size / (time.perf_counter() - begun)
