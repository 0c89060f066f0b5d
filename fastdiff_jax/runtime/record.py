"""The command line of launch/record.py: a teacher's trajectories, computed once for many students."""

import hashlib
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from fastdiff_jax import rng
from fastdiff_jax.data import pairs
from fastdiff_jax.runtime import (
    command_line,
    commands,
    experiment,
    files,
    generate,
    progress,
    recorded,
    settings,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import assemble
from fastdiff_jax.runtime.experiment import Experiment
from fastdiff_jax.types import Recording, Sampler

FIRST = 2**29  # number of the first latents: far from those that reports are made of
MOST = 2**29


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code, see `command_line`."""

    def command():
        values, config, reference = command_line.parse(arguments, define)
        name = experiment.name_of(reference)
        workdir = Path(values.workdir) if values.workdir else Path("runs") / name
        out = Path(values.out) if values.out else None
        work(Experiment(name, config, workdir), values.num, out, values.seed)
        return 0

    return command_line.guarded(command)


def define(values: flags.FlagValues) -> None:
    """Defines the flags of launch/record.py."""
    given = dict(flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "Directory of the student's run, beside its teacher's; runs/<config name> by default.",
        **given,
    )  # fmt: skip
    flags.DEFINE_integer("num", 4096, "Trajectories to record.", lower_bound=1, upper_bound=MOST, **given)
    flags.DEFINE_integer("seed", None, "Seed of the latents; the config's by default.",
                         lower_bound=0, upper_bound=settings.MOST, **given)  # fmt: skip
    flags.DEFINE_string(
        "out", None, "Folder of the recording; config.data.folder or <workdir>/pairs by default.", **given
    )


def work(run: Experiment, num: int, out: Path | None = None, seed: int | None = None) -> Path:
    """Records `num` trajectories in shards of config.evaluation.batch_size; a recording begun goes on.

    Returns: the folder.
    Raises: ValueError if the method has nothing to record, its teacher is not trained, or the folder holds
      another recording.
    """
    if jax.process_count() > 1:
        raise ValueError(f"a recording is made by one process, not by {jax.process_count()}; start one.")
    config = run.config.copy_and_resolve_references()
    folder = out or run.workdir / "pairs"
    if config.data.name == "pairs":
        folder = out or Path(config.data.folder)
        given = {key: config.data[key] for key in ("conditional",) if key in config.data}
        config.data = ConfigDict(config.data.source.to_dict() | given)
    experiment.check_writable(folder, "--out")
    job, mesh = assemble(config), meshes.make(config.mesh)
    recording = recorded.recording_of(job)
    bases = {role: name for role, name in job.prerequisites.items() if role != "initial"}
    frozen, _ = commands.starting_weights(job._replace(prerequisites=bases), run, mesh)
    seed, batch = config.seed if seed is None else seed, config.evaluation.batch_size
    header = recorded.identity(job, frozen) | {"seed": seed, "batch": batch}
    labels = generate.labels_of(job.data, seed, num)
    missing = [
        number for number in range(math.ceil(num / batch))
        if not there(shard(folder, number), header, min(batch, num - number * batch))
    ]  # fmt: skip
    begun = time.perf_counter()
    if missing:
        sampler = walk(recording, job.data.shape)
        maker = generate.generator(sampler, {}, frozen, job.classes, batch, mesh)
        with progress.count(len(missing) * batch, "img") as bar:
            for number in missing:
                arrays = rows(maker, seed, number, labels[number * batch :][:batch])
                files.write(shard(folder, number), pairs.serialise(arrays, header))
                bar.update(batch)
    seconds = time.perf_counter() - begun
    files.write_json(folder / pairs.INDEX, {"header": header, "shards": inventory(folder, num, batch)})
    progress.say(
        f"{num} trajectories ({recording.calls} calls of the teacher each; {len(missing)} shards made in "
        f"{seconds:.1f} s): {folder}"
    )
    return folder


def walk(recording: Recording, shape: tuple[int, ...]) -> Sampler:
    """A sampler whose images are latents and all states, (B,1+S,...)."""

    def run(params, frozen, keys, cond):
        del params
        latents = rng.normal_per_image(keys, shape)
        return jnp.concatenate([latents[:, None], recording.states(frozen, latents, cond)], 1)

    return Sampler(recording.calls, run)


def rows(maker: generate.Generator, seed: int, number: int, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of shard `number`: as many rows as labels."""
    size = maker.batch_size
    index = FIRST + number * size + np.arange(size, dtype=np.int32)
    values = maker.batch(seed, index, np.resize(labels, size))[: len(labels)]
    return {
        "latents": values[:, 0],
        "states": values[:, 1:],
        "label": labels,
        "index": index[: len(labels)],
    }


def shard(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"{number:05d}.safetensors"


def there(path: Path, header: dict, count: int) -> bool:
    """Whether a shard is there with all its rows. Raises: ValueError if it is of another recording."""
    if not path.exists():
        return False
    found, size = pairs.described(path)
    if other := recorded.difference(found, header):
        raise ValueError(f"{path} {other}; delete it or choose another folder with --out.")
    return size == count


def inventory(folder: Path, num: int, batch: int) -> list[dict]:
    """The shards as `pairs.json` lists them."""
    paths = [shard(folder, number) for number in range(math.ceil(num / batch))]
    return [
        {
            "file": path.name,
            "rows": min(batch, num - number * batch),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for number, path in enumerate(paths)
    ]
