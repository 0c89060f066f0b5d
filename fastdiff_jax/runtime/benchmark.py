"""Speed of an experiment: compile seconds, ms per training step, images per second of each sampler, memory.

Or of one forward pass of its network alone, which needs a small part of the memory of training.
"""

import os
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import conditioning, precond, rng, trees
from fastdiff_jax.metrics import timing
from fastdiff_jax.runtime import commands, compile, generate, progress, recorded
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import Job, assemble
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.types import Frozen, Params, PyTree


def run(run: Experiment, steps: int) -> None:
    """Prints the measurements, one a line. Raises: ValueError if the batch does not divide over the devices."""
    job, mesh = assemble(run.config, outline=True), meshes.make(run.config.mesh)
    batch_size = run.config.train.batch_size
    meshes.check_divides(batch_size, mesh)
    progress.say(
        f"{run.name}: {mesh.size} {jax.devices()[0].device_kind} device(s), {os.cpu_count()} host cores, "
        f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
    )
    frozen, initial = map(noise, commands.basis_shapes(job))
    weights = training(job, frozen, initial, batch_size, steps, mesh)
    for name, sampler in job.method.samplers.items():
        size = run.config.evaluation.batch_size
        task, shape = job.parts.task, job.parts.shape
        maker = generate.generator(sampler, weights, frozen, job.classes, size, mesh, task=task, shape=shape)
        told = [np.arange(size), np.zeros(size, np.int32)]
        told += [] if task is None else [np.zeros((size, *shape), np.float32)]
        speed = timing.per_image(maker.batch, 0, *told, images=size, repeats=5)
        progress.say(
            f"sampler {name}: {sampler.nfe} NFE, compile {maker.compile_seconds:.1f} s, "
            f"{speed.median:.3g} ms/image (best {speed.best:.3g}), {1e3 / speed.median:.4g} images/s"
        )
    progress.say(f"peak memory: {peak_bytes() / 2**20:.0f} MiB")


def forward(run: Experiment, images: int, steps: int) -> None:
    """Prints what one call of the trained network costs for so many images, on one device.

    Weights are random, of the network's own shapes; labels are zeros. Nothing is trained.
    """
    job = assemble(run.config, outline=True)
    role = next(role for role in job.parts.models if role != "teacher" or len(job.parts.models) == 1)
    model = job.parts.models[role]
    x = jnp.zeros((images, *precond.input_shape(model, job.parts.shape)))
    parts, (frozen, _) = job.parts, commands.basis_shapes(job)
    cond = conditioning.blank(parts.labels, parts.task, parts.shape, frozen, images)
    shapes = jax.eval_shape(model.network.init, rng.root(0, "init"), x, cond)
    progress.say(
        f"{run.name}: network {role}, {trees.parameters(shapes):,} parameters, {trees.nbytes(shapes):,} bytes, "
        f"{images} image(s) of {'x'.join(map(str, x.shape[1:]))} on one {jax.devices()[0].device_kind} device, "
        f"{os.cpu_count()} host cores"
    )
    arguments = jax.device_put((noise(shapes), x, jnp.zeros(images), cond))
    before, begun = peak_bytes(), time.perf_counter()
    call = jax.jit(lambda *given: model.network.apply(*given)).lower(*arguments).compile()
    compiled, seconds = time.perf_counter() - begun, []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        seconds.append(time.perf_counter() - begun)
    flops = (call.cost_analysis() or {}).get("flops", 0.0)
    progress.say(
        f"forward pass: compile {compiled:.1f} s, first {seconds[0]:.2f} s, median of {steps} more "
        f"{np.median(seconds[1:]):.2f} s (best {min(seconds[1:]):.2f}), {flops:.4g} FLOPs"
    )
    progress.say(f"peak memory: {peak_bytes() / 2**20:.0f} MiB ({before / 2**20:.0f} MiB before compiling)")


def training(
    job: Job, frozen: Frozen, initial: Frozen, batch_size: int, steps: int, mesh
) -> Params:
    """Times the training step; returns the weights after it."""
    layout = meshes.shardings(commands.state_shapes(job), meshes.DEFAULT, mesh)
    frozen_layout, basis = meshes.shardings(frozen, meshes.DEFAULT, mesh), frozen | initial
    create = compile.initial_state(
        job.method, layout, meshes.shardings(basis, meshes.DEFAULT, mesh), mesh
    )
    state, frozen = create(rng.root(0, "init"), basis), jax.device_put(frozen, frozen_layout)
    step, key = compile.train_step(job.method, layout, frozen_layout, mesh), rng.root(0, "train")
    local = batch_size // jax.process_count()
    generator = np.random.default_rng(0)
    batch = {
        name: np.resize(np.arange(max(job.classes, 1), dtype=np.int32), local)
        if name == "label"
        else generator.uniform(-1, 1, like.shape).astype(np.float32)
        for name, like in recorded.batch_shapes(job, frozen, local).items()
    }
    batch, variant = meshes.place(batch, mesh), job.method.variant(0, 0)
    begun = time.perf_counter()
    step = step.lower(state, frozen, batch, key, variant).compile()
    compiled, seconds = time.perf_counter() - begun, []
    for number in range(steps + 1):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(
            step(state, frozen, batch, jax.random.fold_in(key, number))
        )
        seconds.append(time.perf_counter() - begun)
    ms = 1e3 * np.array(seconds[1:])
    progress.say(
        f"training step of {batch_size}: compile {compiled:.1f} s, "
        f"{np.median(ms):.1f} ms (best {ms.min():.1f}, "
        f"{len(ms)} steps), {1e3 * batch_size / np.median(ms):.4g} images/s"
    )
    return job.method.weights(state)


def noise(shapes: PyTree) -> PyTree:
    """Small values in the shapes of weight trees."""
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (0.02 * generator.standard_normal(leaf.shape)).astype(leaf.dtype), shapes
    )


def peak_bytes() -> int:
    """The most memory in use so far: of the first accelerator, or of this process on the CPU."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return (
        statistics.get("peak_bytes_in_use")
        or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
