"""How a finished run is measured: a sampler against the data, a feature net on held-out images."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fastdiff_jax import conditioning
from fastdiff_jax.metrics import features, panels, samples
from fastdiff_jax.runtime import (
    checkpoint,
    experiment,
    files,
    generate,
    given,
    posthoc,
    progress,
    protocols,
    report,
    results,
    sessions,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import Job
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.solvers import sampling
from fastdiff_jax.types import Frozen, Params, Sampler


def by_samples(run: Experiment, job: Job, weights: Params, frozen: Frozen, mesh: Mesh) -> None:
    """Samples with the run's own samplers and with its teacher's, measures them, and writes the report."""
    begun, settings, data = time.perf_counter(), run.config.evaluation, job.data
    panel = panels.build(settings.panel.to_dict(), data, (meshes.whole(mesh), meshes.rows(mesh)))
    student = "teacher" in job.parts.models
    kind = results.TRAINED if student else results.TEACHER  # a teacher's own report compares its samplers
    own = job.method.samplers if student else ordered(job.method.samplers)
    plan = [(name, sampler, kind, weights) for name, sampler in own.items()]
    for width in settings.get("sigma_rel", ()):
        other = posthoc.reconstructed(run, weights, width)
        plan += [
            (f"sigma_rel {width:g}, {name}", sampler, kind, other)
            for name, sampler in own.items()
        ]
    others = ordered(teacher_samplers(job))
    plan += [(name, sampler, results.TEACHER, weights) for name, sampler in others.items()]
    floors = spread([panel.floor(settings.num, seed) for seed in range(3)])
    rows = [results.Row(panel.floor_name, floors, results.REFERENCE)]
    bench = tasked(job, panel)
    rows += bench.baselines() if bench else []
    batches = len(settings.seeds) * math.ceil(settings.num / settings.batch_size)
    with progress.count(len(plan) * batches, "batch") as bar:
        for name, sampler, kind, made in plan:
            bar.set_description(name)
            rows.append(row(name, sampler, kind, made, frozen, job, panel, mesh, bar.update, bench))
    table = results.Report(
        title=run.name,
        rows=rows,
        headline=panel.headline,
        provenance=provenance(run, job, panel, time.perf_counter() - begun, bench),
        real=data.reference["image"][:1024],
        real_labels=data.reference["label"][:1024] if job.classes else None,
        mixture=data.exact,
        curves=curves(run, job),
        conditions=bench.pictures(rows) if bench else {},
    )
    report.write(run.workdir, table)
    progress.say("\n".join(["", *report.table(table), "", f"report: {run.workdir / 'report.md'}"]))


def ordered(samplers: Mapping[str, Sampler]) -> dict[str, Sampler]:
    """Samplers in the natural order of their names."""
    return {name: samplers[name] for name in sorted(samplers, key=results.natural)}


def teacher_samplers(job: Job) -> dict[str, Sampler]:
    """What a student is compared with: its teacher's samplers by name; none if it has no teacher."""
    if "teacher" not in job.parts.models:
        return {}
    requests, parts = job.config.evaluation.teacher_samplers.to_dict(), job.parts
    check_hidden(job.config, requests)
    hides = conditioning.guided(parts.labels, parts.task)
    return sampling.samplers(
        requests, parts.models["teacher"], parts.schedule, parts.shape, "teacher", hides=hides
    )


def check_hidden(config: ConfigDict, requests: Mapping[str, Mapping]) -> None:
    """Raises ValueError if samplers hide conditions from a teacher that was always told them in training."""
    scale = lambda request: (request.get("guidance") or {}).get("scale", 1)
    guided = [name for name, request in requests.items() if scale(request) != 1]
    if not guided or not config.get("teacher"):
        return  # data that are the teacher themselves know both answers
    above = experiment.load(config.teacher).method
    if not above.get("label_dropout", 0.0):
        raise ValueError(
            f"evaluation.teacher_samplers: {guided[0]!r} hides conditions from {config.teacher}, which was "
            "trained with label_dropout=0; train it with method.label_dropout=0.1, or drop the guidance."
        )


class Bench(NamedTuple):
    """What the images of every row are made from, where there is a task."""

    job: Job
    panel: panels.Panel
    source: given.Source
    sets: Mapping[protocols.Repeat, given.Given]
    features: Callable[[np.ndarray], np.ndarray] | None

    def measure(self, stored: np.ndarray, repeat: protocols.Repeat) -> dict[str, float]:
        """The panel's columns and the task's, of one set."""
        at, images = self.sets[repeat], self.job.data.decode(stored)
        columns = self.job.parts.task.measure(images, at.batch(), at.draws, self.features)
        return self.panel.measure(stored, at.labels) | columns

    def baselines(self) -> list[results.Row]:
        """Rows of what the task makes without a network."""
        sets = {}
        for repeat, at in self.sets.items():
            for name, images in self.job.parts.task.baselines(at.batch(), at.draws).items():
                stored = self.job.data.encode(np.asarray(images))
                sets.setdefault(name, []).append((self.measure(stored, repeat), stored))
        return [
            results.Row(name, spread([row for row, _ in made]), results.REFERENCE, samples=made[0][1][:1024])
            for name, made in sets.items()
        ]

    def pictures(self, rows: Sequence[results.Row]) -> dict[str, np.ndarray]:
        """The first images of the first set: their input, original and what each row made of them, stored."""
        first = next(iter(self.sets.values())).head(given.PICTURED)
        made = {row.name: row.samples[: given.PICTURED] for row in rows if row.samples is not None}
        return given.pictured(self.job.parts.task, first, self.job.data, made)


def tasked(job: Job, panel: panels.Panel) -> Bench | None:
    """What the rows of a task have in common; None without one."""
    task, settings, data = job.parts.task, job.config.evaluation, job.data
    if task is None:
        return None
    source, sets = given.source(job.config, data), {}
    for repeat in protocols.repeats(settings):
        sets[repeat] = given.given(task, source, data, repeat.seed, settings.num, repeat.first)
    return Bench(job, panel, source, sets, given.judge(job.config, data))


def row(name: str, sampler: Sampler, kind: str, weights: Params, frozen: Frozen, job: Job, panel: panels.Panel,
        mesh: Mesh, tick, bench: Bench | None = None) -> results.Row:  # fmt: skip
    """One line of the table: samples with every seed, each set measured by the panel."""
    settings, sets, speeds, first = job.config.evaluation, [], [], None
    told = dict(task=job.parts.task, shape=job.parts.shape) if bench else {}
    maker = generate.generator(sampler, weights, frozen, job.classes, settings.batch_size, mesh, **told)
    for repeat in protocols.repeats(settings):
        at = bench and bench.sets[repeat]
        labels = at.labels if at else protocols.labels(settings, job.data, repeat)
        stored, seconds = generate.images(
            maker, repeat.seed, labels, job.data.encode, tick, repeat.first, at and at.images
        )
        sets.append(bench.measure(stored, repeat) if bench else panel.measure(stored, labels))
        speeds.append(1e3 * seconds)
        first = first or (stored[:1024], labels[:1024] if job.classes else None)
    least = {}
    if protocols.sampling(settings) == protocols.EDM:
        least = {column: min(one[column] for one in sets) for column in panel.nets}
    return results.Row(name, spread(sets), kind, sampler.nfe, min(speeds), *first, least)


def spread(sets: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation by column (that of the sets themselves, so zero for one)."""
    return {
        key: (float(np.mean([s[key] for s in sets])), float(np.std([s[key] for s in sets])))
        for key in sets[0]
    }


def lineage(run: Experiment, job: Job) -> list[Experiment]:
    """The run and the experiments that it builds on."""
    return [
        run,
        *(
            experiment.prerequisite(reference, run.workdir)
            for reference in job.prerequisites.values()
        ),
    ]


def curves(run: Experiment, job: Job) -> dict:
    """Training logs by experiment."""
    return {one.name: one.workdir / "metrics.jsonl" for one in lineage(run, job)}


def provenance(
    run: Experiment, job: Job, panel: panels.Panel, seconds: float, bench: Bench | None = None
) -> results.Provenance:
    """Where the numbers of a report come from."""
    settings, runs = run.config.evaluation, lineage(run, job)
    note = job.data.note
    notes = [f"The data are a {note}: distances do not compare with published ones."] if note else []
    task = "none"
    if bench:
        task = {**job.config.task.to_dict(), "conditions": bench.source.said}
        notes.append(f"Task {job.config.task.name}: conditions are made of {bench.source.said}.")
    products = {one.name: checkpoint.product(one.workdir) for one in runs}
    return results.Provenance(
        config=run.name,
        data=job.data.name,
        fingerprint=job.data.fingerprint,
        features=panel.nets,
        num=settings.num,
        seeds=tuple(protocols.seeds(settings)),
        quantiser=protocols.quantiser(job.data),
        steps={name: product.step for name, product in products.items()},
        seconds={f"training {one.name}": sessions.seconds(one.workdir) for one in runs}
        | {"evaluation": seconds},
        more={
            "training_seed": run.config.seed,
            "weights": {name: product.fingerprint for name, product in products.items()},
            "protocol": protocols.described(settings, job.data, panel, task),
        },
        remarks=(*job.method.remarks, *panel.remarks, *notes),
    )


def by_held_out(run: Experiment, job: Job, weights: Params, frozen: Frozen, mesh: Mesh) -> None:
    """Tests a feature net on held-out images; writes its weights, features.safetensors, and report.md."""
    del frozen, mesh
    images, labels = held_out(run, job)
    request = run.config.models.classifier.network.to_dict()
    network = job.parts.models["classifier"].network

    def apply(params, images):
        logits = network.apply(params, images, np.zeros(len(images), np.float32), {})
        return logits, logits

    net = features.Features(run.name, "", job.classes, weights, apply, {})
    _, logits = features.extractor(net, job.data.decode)(images)
    accuracy = samples.agreement(logits, labels)
    about = features.metadata(
        request,
        job.data.shape,
        job.classes,
        data=job.data.name,
        fingerprint=job.data.fingerprint,
        accuracy=accuracy,
    )
    content = features.serialise(weights, about)
    files.write(run.workdir / "features.safetensors", content)
    text = (
        f"{run.name}: {accuracy:.1%} of {len(labels)} held-out images; features.safetensors has sha256 "
        f"{hashlib.sha256(content).hexdigest()}"
    )
    files.write(run.workdir / "report.md", f"# {run.name}\n\n{text}\n".encode())
    progress.say(text)


def held_out(run: Experiment, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Stored images and labels that a feature net was not trained on: another split's, or the reference's own.

    Raises: ValueError if there are none.
    """
    if (found := given.held_out(run.config, job.data)) is None:
        raise ValueError(
            f"{job.data.name} holds no images back; name another split of it as config.evaluation.split."
        )
    return found.images, found.labels


KINDS = {"samples": by_samples, "features": by_held_out}


def check(job: Job, mesh: Mesh) -> None:
    """Raises ValueError if the run could not be measured once it is trained; reads no image."""
    settings = job.config.evaluation
    if settings.kind not in KINDS:
        raise ValueError(f"no kind of evaluation {settings.kind!r}; known: {', '.join(KINDS)}.")
    meshes.check_divides(settings.batch_size, mesh, "evaluation.batch_size")
    posthoc.check(job.config)
    protocols.check(settings)
    if settings.kind == "samples":
        panels.check(settings.panel.to_dict(), job.data)
        teacher_samplers(job)


def work(run: Experiment, job: Job, weights: Params, frozen: Frozen, mesh: Mesh) -> None:
    """Measures a finished run in the way that `config.evaluation.kind` names and writes what it found.

    Raises: ValueError as `check`.
    """
    check(job, mesh)
    KINDS[run.config.evaluation.kind](run, job, weights, frozen, mesh)
