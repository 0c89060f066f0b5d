"""A run of under a millisecond a step, for tests of the runtime; as a script, a process to be killed.

    python tests/toy_run.py '{"workdir": "...", "kill_in_step": 7, ...}'
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax import rng
from fastdiff_jax.runtime import backend, checkpoint, loop, mesh, writer
from fastdiff_jax.types import Method, Sampler

SHAPE, BATCH, STEPS, SEED = (4, 4, 1), 16, 12, 5


class State(NamedTuple):
    step: jax.Array
    params: Any
    ema: Any
    start: Any  # frozen weights, passed through
    opt: Any


def toy_method(width: int = 24, dtype=jnp.float32, nan_from: int | None = None,
               late_nan: bool = False) -> Method:  # fmt: skip
    """Denoising by a two-layer perceptron, with a state that shares leaves, as careless methods have it.

    Args:
      nan_from: step from which the loss is NaN, and the weights with it.
      late_nan: the weights break one step before the loss shows it.
    """
    tx = optax.adam(1e-2)

    def init(key, frozen):
        size = int(np.prod(SHAPE))
        params = {
            "first": {"kernel": jax.random.normal(rng.stream(key, "first"), (size, width), dtype) / 4},
            "second": {"kernel": jnp.zeros((width, size), dtype), "bias": jnp.zeros(size, dtype)},
        }
        return State(jnp.zeros((), jnp.int32), params, params, frozen["anchor"], tx.init(params))

    def apply(params, x):
        hidden = jnp.tanh(x.reshape(len(x), -1) @ params["first"]["kernel"])
        return (hidden @ params["second"]["kernel"] + params["second"]["bias"]).reshape(x.shape)

    def draw(key, batch, variant):
        return {"noise": jax.random.normal(key, batch["image"].shape)}

    def update(state, frozen, batch, draws, variant):
        def loss(params):
            error = apply(params, batch["image"] + draws["noise"]) - batch["image"] - frozen["anchor"]
            return jnp.mean(error**2) * (2.0 if variant == "double" else 1.0)

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        if nan_from is not None:
            broken = state.step >= nan_from
            value = jnp.where(broken, jnp.nan, value)
            early = state.step >= nan_from - 1 if late_nan else broken
            params = jax.tree.map(lambda p: jnp.where(early, jnp.nan, p), params)
        ema = params if variant == "double" else optax.incremental_update(params, state.ema, 0.1)
        metrics = {"loss": value, "number": state.step * 1.0}
        return State(state.step + 1, params, ema, state.start, opt), metrics

    def generate(params, frozen, keys, cond):
        return apply(params, rng.normal_per_image(keys, SHAPE)) + frozen["anchor"]

    return Method(
        init,
        draw,
        update,
        lambda state: state.ema,
        {"one": Sampler(1, generate)},
        variant=lambda step, seed: "double" if (step + seed) % 3 == 0 else "single",
        advance=lambda state, step: state._replace(ema=state.params) if step == 6 else state,
    )


def toy_frozen() -> dict[str, Any]:
    return {"anchor": jnp.full(SHAPE, 0.25)}


class Batches:
    """This process's share of the rows of shuffled global batches; `hook(n)` runs before batch n."""

    def __init__(self, batch_size: int = BATCH, shard: tuple[int, int] = (0, 1),
                 hook=lambda number: None):  # fmt: skip
        rows = np.random.default_rng(0).normal(size=(100, *SHAPE)).astype(np.float32)
        index, size = shard[0], batch_size // shard[1]
        self._grain = iter(
            grain.MapDataset.source(rows).seed(SEED).shuffle().repeat().batch(batch_size)
            .map(lambda image: {"image": image[index * size : (index + 1) * size]})
            .to_iter_dataset(grain.ReadOptions(num_threads=0))
        )  # fmt: skip
        self._hook, self.number = hook, 0

    def __next__(self):
        self._hook(self.number)
        self.number += 1
        return next(self._grain)

    def get_state(self):
        return {"grain": self._grain.get_state(), "number": self.number}

    def set_state(self, state):
        self._grain.set_state(state["grain"])
        self.number = state["number"]


def run(workdir: Path, *, config: dict | None = None, method: Method | None = None,
        batches: Batches | None = None, batch_size: int = BATCH, steps: int = STEPS,
        sizes: dict | None = None, save_every: int = 4, log_every: int = 2, patience: int = 2,
        rules=mesh.DEFAULT, store=checkpoint.Store, saved=lambda step: None) -> loop.Outcome:  # fmt: skip
    """Trains the toy in `workdir` as main would, without the evaluation."""
    method = method or toy_method()
    batches = batches or Batches(batch_size, (jax.process_index(), jax.process_count()))
    config = config or {"seed": SEED, "train": {"steps": steps, "batch_size": batch_size}}
    with store(workdir, config) as files:
        log = writer.Writer(workdir)
        try:
            outcome = loop.train(
                method, toy_frozen(), batches, seed=SEED, steps=steps, batch_size=batch_size,
                mesh=mesh.make(sizes or {"data": -1, "fsdp": 1}), store=files, writer=log, log_every=log_every,
                save_every=save_every, patience=patience, progress=False, rules=rules,
                saved=saved,
            )  # fmt: skip
        finally:
            log.close()
        if outcome.finished:
            files.finish(outcome.step, method.weights(outcome.state))
    return outcome


def die() -> None:
    """SIGKILL to this process: nothing is flushed, nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def die_when_seen(pattern: str, folder: Path) -> None:
    """Kills this process as soon as `folder` holds a match of `pattern`."""

    def watch():
        while not list(folder.glob(pattern)):
            time.sleep(2e-4)
        die()

    threading.Thread(target=watch, daemon=True).start()


class DiesAfterCommit(checkpoint.Store):
    """Killed once orbax has committed a checkpoint, before its inventory is written."""

    def _record(self, step):
        if step == 8:
            die()
        super()._record(step)


def main(options: dict[str, Any]) -> None:
    backend.setup()
    workdir, store = Path(options["workdir"]), checkpoint.Store

    def hook(number):
        if number == options.get("kill_in_step"):
            time.sleep(0.5)  # until the last save is through
            die()
        if number == options.get("terminate_in_step"):
            os.kill(os.getpid(), signal.SIGTERM)

    if options.get("kill_in_save"):
        die_when_seen(options["kill_in_save"], workdir / "checkpoints")
    if options.get("kill_after_commit"):
        store = DiesAfterCommit
    outcome = run(workdir, batches=Batches(hook=hook), store=store)
    print(json.dumps({"step": outcome.step, "finished": outcome.finished}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
