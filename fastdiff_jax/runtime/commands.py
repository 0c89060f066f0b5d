"""What the command line does with an experiment: train, sample, evaluate, or only say what it would cost."""

import io
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fastdiff_jax import registry, rng, trees
from fastdiff_jax.data import unseen
from fastdiff_jax.metrics import features
from fastdiff_jax.runtime import (
    checkpoint,
    compile,
    deltas,
    evaluate,
    experiment,
    feed,
    files,
    generate,
    given,
    loop,
    perceptual,
    posthoc,
    progress,
    recorded,
    report,
    sessions,
    settings,
    writer,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import Job, assemble
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.types import Frozen, Params, Precond


def train(run: Experiment) -> bool:
    """Trains what the experiment builds on if need be, then itself, then measures; resumes by itself.

    Returns: False if SIGTERM stopped it (after saving).
    """
    unseen.check(run.name, run.config.data.name)
    check(run)
    evaluate.check(assemble(run.config, outline=True), meshes.make(run.config.mesh))
    if not (finished(run) or fit(run)):
        return False
    measure(run)
    return True


class Outlines(NamedTuple):
    """What checks of several runs share, both filled in as they go."""

    shapes: dict[str, Params]  # of products, by reference
    checked: set[Path]  # work directories of runs that passed

    @staticmethod
    def none() -> "Outlines":
        """Nothing known yet."""
        return Outlines({}, set())


def check(run: Experiment, known: Outlines | None = None) -> None:
    """Raises ValueError for what training would only meet later, before anything is written.

    That is a workdir that cannot be used, or an impossible batch, of the run and of what it builds on.

    Args:
      known: shared between students of one teacher, which is outlined and checked once.
    """
    known = known or Outlines.none()
    if run.workdir not in known.checked:
        _check(run, known)
        known.checked.add(run.workdir)


def _check(run: Experiment, known: Outlines) -> None:
    experiment.check_writable(run.workdir)
    if finished(run):
        return
    job, mesh = assemble(run.config, outline=True), meshes.make(run.config.mesh)
    meshes.check_divides(run.config.train.batch_size, mesh, "train.batch_size")
    recorded.check(job)
    method = run.config.method
    check_length = registry.optional("methods", method.name, "check_length")
    if check_length is not None:
        check_length(method.to_dict(), run.config.train.steps)
    bases = {
        role: experiment.prerequisite(reference, run.workdir) for role, reference in job.prerequisites.items()
    }
    for role, basis in bases.items():
        settings.check(basis.config)
        check_images(job, run, basis)
        check_teacher = registry.optional("methods", method.name, "check_teacher")
        if check_teacher is not None and role == "teacher":
            check_teacher(method.to_dict(), basis.config.method.to_dict())
    for role, reference in job.prerequisites.items():
        if experiment.folder(reference) is None:  # else it is finished, and perhaps not this user's to write
            check(bases[role], known)
    state_shapes(job, known)  # refuses networks, conditions and shipped weights that do not fit each other
    # Several processes would race here; what they meet later is the same refusal.
    if jax.process_count() == 1 and (run.workdir / "config.json").exists():
        checkpoint.Store(run.workdir, run.config.to_dict()).close()  # another run's, or in use


def check_images(job: Job, run: Experiment, basis: Experiment) -> None:
    """Raises ValueError if a run builds on weights for images of another size, or of other classes."""
    theirs = assemble(basis.config, outline=True)
    for what, there, here in (
        ("images", theirs.data.shape, job.data.shape), ("classes", theirs.classes, job.classes),
    ):  # fmt: skip
        if there != here:
            raise ValueError(
                f"{basis.name} is for {what} {there}, and the data of {run.name} have {here}; name weights "
                "that were made for such data, or other data."
            )


def fit(run: Experiment) -> bool:
    """Trains to the end and saves the product, without measuring it. Returns: False if interrupted."""
    job, mesh, train = assemble(run.config), meshes.make(run.config.mesh), run.config.train
    for reference in job.prerequisites.values():
        basis = experiment.prerequisite(reference, run.workdir)
        if not finished(basis):
            progress.say(f"{run.name} builds on {basis.name}, which is not trained yet.")
            if not fit(basis):
                return False
    frozen, initial = starting_weights(job, run, mesh)
    recorded.check(job, frozen)
    progress.say(f"{run.name}: training to step {train.steps} in {run.workdir}")
    kept = posthoc.options(run.config)
    batches = feed.batches(job)
    begun = time.perf_counter()
    with checkpoint.Store(
        run.workdir, run.config.to_dict(), keep=train.keep, milestones=train.milestones or None
    ) as store:
        latest = store.latest()
        deltas.keep_base(run, job, begun=latest is not None)
        first = latest or 0
        logs = writer.Writer(run.workdir, train.writers, name=run.name, config=run.config.to_dict())

        def trained(step):
            sessions.record(run.workdir, first, step, time.perf_counter() - begun)

        outcome = loop.train(
            job.method, frozen, batches, initial=initial, seed=run.config.seed, steps=train.steps,
            batch_size=train.batch_size, mesh=mesh, store=store, writer=logs,
            log_every=train.log_every, save_every=train.save_every, patience=train.patience,
            snapshot_every=kept.every if kept else 0, snapshot=posthoc.of(kept), saved=trained,
        )  # fmt: skip
        trained(outcome.step)
        if outcome.finished:
            store.finish(outcome.step, job.method.weights(outcome.state))
            progress.say(f"{run.name}: trained in {sessions.seconds(run.workdir):.0f} s")
    return outcome.finished


def finished(run: Experiment) -> bool:
    """Whether the experiment's product is there; loading it refuses one that another config made."""
    return checkpoint.product(run.workdir) is not None


def starting_weights(job: Job, run: Experiment, mesh) -> tuple[Frozen, Frozen]:
    """(weights that never train, weights that only `init` reads), from the experiments built on."""
    loaded = {}
    for role, reference in job.prerequisites.items():
        basis = experiment.prerequisite(reference, run.workdir)
        loaded[role] = product(assemble(basis.config), basis, mesh)
    loaded = exact(job) | shipped(job) | loaded
    initial = {"initial": loaded.pop("initial")} if "initial" in loaded else {}
    return loaded, initial


def exact(job: Job) -> Frozen:
    """The data's own denoiser as the teacher, where the data have one and the config asks for a teacher."""
    if job.data.exact is None or "teacher" not in job.parts.models:
        return {}
    return {"teacher": jax.tree.map(lambda a: np.asarray(a, np.float32), job.data.exact)}


def shipped(job: Job) -> Frozen:
    """Feature nets that a method reads: models whose section has `weights`, as `metrics.features` takes them.

    Raises: ValueError if the file is not the one asked for, or is of another network than the model.
    """
    found = {}
    for role, request in perceptual.roles(job.config).items():
        if role == perceptual.ROLE:
            found[role] = perceptual.load(request)
        elif "weights" in request:
            net, network = features.build(request.weights, job.parts.shape), request.network.to_dict()
            if net.metadata.get("network") != network:
                raise ValueError(
                    f"model {role} is the network {network}, its weights {net.name} are of "
                    f"{net.metadata.get('network')}; state their network, or other weights."
                )
            found[role] = net.params
    return found


def basis_shapes(job: Job, known: Outlines | None = None) -> tuple[Frozen, Frozen]:
    """Shapes of what `starting_weights` loads, without reading anything; `known` as in `check`."""
    known = known or Outlines.none()
    for reference in job.prerequisites.values():
        if reference not in known.shapes:
            above = assemble(experiment.load(reference), outline=True)
            known.shapes[reference] = weight_shapes(above, known)
    found = exact(job) | shipped(job) | {role: known.shapes[r] for role, r in job.prerequisites.items()}
    initial = {"initial": found.pop("initial")} if "initial" in found else {}
    return found, initial


def teacher(run: Experiment, outline: bool = False) -> Job:
    """The assembled experiment, for commands that run a teacher's denoiser under solvers of their own.

    Args:
      outline: as `assemble`.
    Raises: ValueError if it trains something else, or a model that is no denoiser.
    """
    method, basis = run.config.method.name, run.config.get("teacher")
    if method != "teacher":
        advice = f"use --config {basis}" if basis else "name the config of a teacher"
        raise ValueError(f"this command samples a teacher, and {run.name} is trained by {method}; {advice}.")
    job = assemble(run.config, outline)
    if job.parts.task is not None:
        raise ValueError(
            f"{run.name} has the task {run.config.task.name}, and this command makes no conditions; measure it "
            "with launch/main.py, or use a teacher without a task."
        )
    if not isinstance(job.parts.models["student"].precond, Precond):
        raise ValueError(f"{run.name} has a velocity, and this command needs a denoiser; use another teacher.")
    return job


def state_shapes(job: Job, known: Outlines | None = None) -> Params:
    """Shapes of a method's training state; `known` as in `check`."""
    frozen, initial = basis_shapes(job, known)
    return jax.eval_shape(job.method.init, rng.root(0, "init"), frozen | initial)


def weight_shapes(job: Job, known: Outlines | None = None) -> Params:
    """Shapes of a method's product; `known` as in `check`."""
    return job.method.weights(state_shapes(job, known))


def product(job: Job, run: Experiment, mesh) -> Params:
    """The finished weights of an experiment, in the mesh's layout.

    Raises: ValueError if it is not finished, or a delta whose base has changed.
    """
    template = weight_shapes(job)
    layout = meshes.shardings(template, meshes.DEFAULT, mesh)
    weights = checkpoint.load_product(
        run.workdir, compile.with_layout(template, layout), run.config.to_dict()
    )
    deltas.check_base(run, job)
    return weights


def sample(
    run: Experiment,
    num: int,
    out: Path,
    seed: int | None,
    labels: list[int] | None,
    name: str | None,
) -> None:
    """Writes `images` (num,...) and, if there are classes, `labels` (num,) to `out`, and a grid beside it.

    Images are as the data stores them: uint8 (N,H,W,C). With a width in config.evaluation.sigma_rel, they are
    drawn from the average of that width. Where there is a task, its conditions are made of the data's held-out
    images (of these labels), which `out` then has as `originals`, and as `inputs` what a reader sees of the
    conditions; the picture is of all three, as in reports.
    Raises: ValueError for an unknown sampler or label, a file that cannot be written, or if nothing
      is trained yet.
    """
    if out.suffix != ".npz" or out.is_dir():
        raise ValueError(f"--out names a file that ends in .npz; got {str(out)!r}.")
    experiment.check_writable(out.parent, "--out")
    job, mesh = assemble(run.config), meshes.make(run.config.mesh)
    posthoc.check(run.config)
    if len(widths := run.config.evaluation.get("sigma_rel", ())) > 1:
        raise ValueError(f"samples are drawn from one average; got {len(widths)} of evaluation.sigma_rel.")
    weights = product(job, run, mesh)
    weights = posthoc.reconstructed(run, weights, widths[0]) if widths else weights
    samplers = job.method.samplers
    name = name or next(iter(samplers), None)
    if name not in samplers:
        raise ValueError(
            f"{run.name} has no sampler {name!r}; known: {', '.join(samplers) or 'none'}."
        )
    seed, classes = run.config.seed if seed is None else seed, job.classes
    asked, task = labels is not None, job.parts.task
    if not asked:
        labels = generate.labels_of(job.data, seed, num)
    elif not classes:
        raise ValueError(f"--labels {labels}, but {run.name} is unconditional; leave --labels out.")
    elif not all(0 <= label < classes for label in labels):
        raise ValueError(
            f"--labels {labels} on data with {classes} classes; use numbers from 0 to {classes - 1}."
        )
    labels = np.resize(np.asarray(labels, np.int32), num)
    batch_size, told = run.config.evaluation.batch_size, None
    if task is not None:
        source = given.source(run.config, job.data)
        told = given.given(task, source, job.data, seed, num, labels=labels if asked else None)
        labels = told.labels
    frozen, _ = starting_weights(job, run, mesh)
    maker = generate.generator(
        samplers[name], weights, frozen, classes, batch_size, mesh, task=task, shape=job.parts.shape
    )
    with progress.count(math.ceil(num / batch_size), "batch") as bar:
        stored, seconds = generate.images(
            maker, seed, labels, job.data.encode, bar.update, given=told and told.images
        )
    if jax.process_index() == 0:
        buffer = io.BytesIO()
        shown = {} if told is None else given.pictured(task, told, job.data, {name: stored})
        more = {"labels": labels} if classes else {}
        more |= {f"{key}s": shown[key] for key in ("input", "original") if key in shown}
        np.savez(buffer, images=stored, **more)
        files.write(out, buffer.getvalue())
        picture = out.with_suffix(".png")
        if shown:
            report.strips(picture, {key: images[:given.PICTURED] for key, images in shown.items()})
        else:
            report.grid(picture, stored[:400], labels[:400] if classes else None, job.data.exact)
        progress.say(
            f"{num} samples by {name} ({samplers[name].nfe} NFE, {1e3 * seconds:.2f} ms each): {out}"
        )


def dry_run(run: Experiment) -> None:
    """Prints parameters, bytes and FLOPs of one training step; reads no data and writes nothing."""
    job, mesh = assemble(run.config, outline=True), meshes.make(run.config.mesh)
    batch_size = run.config.train.batch_size
    meshes.check_divides(batch_size, mesh, "train.batch_size")
    (frozen, _), state = basis_shapes(job), state_shapes(job)
    layout, frozen_layout = (
        meshes.shardings(tree, meshes.DEFAULT, mesh) for tree in (state, frozen)
    )
    weights = job.method.weights(state)
    progress.say(
        f"{run.name}: method {run.config.method.name}, {batch_size} images a step, "
        f"{mesh.size} {jax.default_backend()} device(s)"
    )
    progress.say(f"parameters of the product: {trees.parameters(weights):,}")
    if job.parts.adapter is not None:
        progress.say(deltas.described(frozen["teacher"], state))
    for title, tree, placed in (
        ("product", weights, job.method.weights(layout)),
        ("state", state, layout),
        ("frozen", frozen, frozen_layout),
    ):
        progress.say(
            f"bytes of the {title}: {trees.nbytes(tree):,} in all, "
            f"{meshes.bytes_per_device(tree, placed):,} per device"
        )
    for name in sorted(state._fields if hasattr(state, "_fields") else ()):
        tree = getattr(state, name)
        if trees.count(tree) > 1:
            progress.say(
                f"  state.{name}: {trees.count(tree):,} numbers, {trees.nbytes(tree):,} bytes"
            )
    batch = recorded.batch_shapes(job, frozen, batch_size)
    step = compile.train_step(job.method, layout, frozen_layout, mesh)
    variant = job.method.variant(0, run.config.seed)
    cost = step.lower(state, frozen, batch, rng.root(0, "train"), variant).cost_analysis()
    progress.say(f"FLOPs per step: {cost['flops']:.4g} (XLA's estimate before optimisation)")


def measure(run: Experiment) -> None:
    """Evaluates the finished experiment and writes report.md, report.png and card.json.

    Raises: ValueError if its data are not known, as those of converted weights.
    """
    unseen.check(run.name, run.config.data.name)
    job, mesh = assemble(run.config), meshes.make(run.config.mesh)
    weights = product(job, run, mesh)
    frozen, _ = starting_weights(job, run, mesh)
    if job.parts.adapter is not None:
        said = deltas.described(frozen["teacher"], state_shapes(job))
        job = job._replace(method=job.method._replace(remarks=(*job.method.remarks, f"{said}.")))
    evaluate.work(run, job, weights, frozen, mesh)
