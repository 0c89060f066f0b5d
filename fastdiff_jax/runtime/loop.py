"""The one training loop: feeds batches and keys to a compiled step, logs, saves, stops in good order."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fastdiff_jax import rng
from fastdiff_jax.runtime import progress as progress_bar
from fastdiff_jax.runtime.checkpoint import Store
from fastdiff_jax.runtime.compile import initial_state, settled, train_step, with_layout
from fastdiff_jax.runtime.mesh import DEFAULT, Rules, check_divides, place, shardings
from fastdiff_jax.runtime.writer import Writer
from fastdiff_jax.types import Frozen, Method, Params, State


class Outcome(NamedTuple):
    """Where training stopped."""

    state: State
    step: int  # steps done
    finished: bool  # False after SIGTERM: the state is saved, run the command again to go on


def train(method: Method, frozen: Frozen, batches: Any, *, seed: int, steps: int, batch_size: int, mesh: Mesh,
          store: Store, writer: Writer, log_every: int, save_every: int, patience: int, progress: bool = True,
          rules: Rules = DEFAULT, initial: Frozen = {}, snapshot_every: int = 0,
          snapshot: Callable[[State], Sequence[Params]] | None = None,
          saved: Callable[[int], None] = lambda step: None) -> Outcome:  # fmt: skip
    """Trains to `steps` from where the store stands; the result does not depend on interruptions.

    The key of step n is fold_in(root(seed, "train"), n), the data iterator's position is saved with the
    state, and metrics are fetched only where they are logged or a state is saved: a fetch waits for the
    device.

    Args:
      batches: iterator over this process's host batches, with get_state() and set_state().
      batch_size: global, over all processes and devices.
      log_every, save_every: in steps; the last step is logged and saved in any case.
      patience: log points in a row with a non-finite metric named loss* after which training stops.
      rules: where weights and frozen trees lie, see `mesh.shardings`.
      initial: trees that only `method.init` reads, as if they were frozen: weights to start from.
      snapshot: what of the state is kept for good after every `snapshot_every` steps, and after the last.
      saved: called with the number of steps done whenever a state is saved.
    Raises: ValueError if the batch does not divide, the store cannot be resumed from, or the loss stays
      non-finite; no state with a non-finite loss or a NaN inside is ever saved, so the last checkpoint
      is a good one.
    """
    check_divides(batch_size, mesh)
    frozen_layout = shardings(frozen, rules, mesh)
    frozen = jax.device_put(frozen, frozen_layout)
    basis = {**frozen, **initial}
    shapes = jax.eval_shape(method.init, rng.root(seed, "init"), basis)
    layout = shardings(shapes, rules, mesh)
    if store.latest() is None:
        create = initial_state(method, layout, shardings(basis, rules, mesh), mesh)
        state, start = create(rng.root(seed, "init"), basis), 0
    else:
        state, position, start = store.restore(with_layout(shapes, layout))
        batches.set_state(position)
        progress_bar.note(f"resumed at step {start} from {store.workdir}.", progress)
    writer.rewind(start)
    step, settle = train_step(method, layout, frozen_layout, mesh), settled(layout)
    key, fold, sound = rng.root(seed, "train"), jax.jit(jax.random.fold_in), jax.jit(_sound)
    strikes = 0
    images, begun = steps * batch_size, start * batch_size
    with _preemption() as stopping, progress_bar.bar(images, begun, progress) as bar:
        for number in range(start, steps):
            advanced = method.advance(state, number)
            if advanced is not state:
                state = settle(advanced)
            batch = place(next(batches), mesh)
            variant = method.variant(number, seed)
            state, metrics = step(state, frozen, batch, fold(key, number), variant)
            bar.update(batch_size)

            done, last = number + 1, number + 1 == steps
            if snapshot is not None and (last or done % snapshot_every == 0):
                store.snapshot(done, snapshot(state))
            log, stop = last or done % log_every == 0, stopping(done)
            if not (log or stop or done % save_every == 0):
                continue
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            losses = {name: value for name, value in values.items() if name.startswith("loss")}
            bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
            if log:
                writer.write(done, {"images": done * batch_size, **values})
                bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()}, refresh=False)
            strikes = strikes + log if bad else 0
            if bad and (strikes >= patience or last):
                raise ValueError(_diverged(bad, done, strikes, store))
            if last or stop or done % save_every == 0:
                # The loss is that of the weights before the update, which may have broken them.
                if not bad and sound(state):
                    store.save(done, state, batches.get_state())
                    saved(done)
                elif last:
                    raise ValueError(_diverged({"the state": math.nan}, done, strikes, store))
            if stop and not last:
                store.wait()
                kept = f"saved is step {store.latest()}, the same command goes on"
                progress_bar.note(f"stopped at step {done}; {kept}.", progress)
                return Outcome(state, done, False)
    store.wait()
    return Outcome(state, max(start, steps), True)


def _sound(state: State) -> jax.Array:
    """No NaN anywhere. Infinity passes: optimizers keep it as the worst value so far."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([True, *(~jnp.isnan(leaf).any() for leaf in leaves)]))


def _diverged(bad: dict[str, float], done: int, strikes: int, store: Store) -> str:
    store.wait()
    what = ", ".join(f"{name} is {value}" for name, value in bad.items())
    what += f" at {strikes} log points in a row" if strikes > 1 else ""
    latest = store.latest()
    saved = "none was saved" if latest is None else f"the last good checkpoint is step {latest}"
    advice = "try a lower learning rate in another --workdir"
    return f"training stopped at step {done}: {what}, and {saved}; {advice}."


@contextmanager
def _preemption() -> Iterator[Any]:
    """stopping(step) -> whether SIGTERM has come; all processes agree on the step at which they say so."""
    if jax.process_count() > 1:
        # jax's own notifier has taken the signal over in `distributed.initialize`.
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python delivers signals to the main thread only
        return
    came = threading.Event()

    def note(number, frame):
        came.set()
        signal.signal(signal.SIGTERM, before)  # a second one ends the process at once

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
