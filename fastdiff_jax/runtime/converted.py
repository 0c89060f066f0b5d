"""Networks of the EDM code as folders that experiments name as their teacher, and weights on the way back.

    out/config.json       a teacher's config: the network, its preconditioner, samplers to try
    out/product/          the weights, and product.json, as a finished run has them
    out/conversion.json   the file they are from, and what the network makes of a fixed input
    out/README.md         the same for readers, with a note on the licence
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from fastdiff_jax import precond, trees
from fastdiff_jax.data import unseen
from fastdiff_jax.interop import edm_networks, edm_pickle, names, npz
from fastdiff_jax.interop.edm_networks import Described
from fastdiff_jax.messages import shown
from fastdiff_jax.runtime import assemble, checkpoint, commands, experiment, files, settings
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.types import Model, Params

OBJECTIVES = {"edm": "edm", "iddpm": "edm", "vp": "vp", "ve": "ve"}  # by precond; none is for iDDPM's loss
MOST_OUTPUTS = 1 << 30  # bytes of one array
BATCH, LEVELS = 2, (0.2, 3.0)  # of the fixed input
LICENCE = (
    "The licence of the original weights holds for these as well. Those that NVIDIA has released with EDM are "
    "under CC BY-NC-SA 4.0: attribution, no commercial use, the same licence for what is derived from them."
)


class Converted(NamedTuple):
    """A network that has been read."""

    key: str  # in its snapshot
    others: tuple[str, ...]  # other entries there
    what: Described
    params: Params
    dropped: tuple[str, ...]  # arrays that the network does not use


def read(path: Path, key: str | None = None) -> Converted:
    """A network of a snapshot, see `edm_pickle.chosen` for which one.

    Raises: ValueError for files that are damaged or hostile, and for networks that are unknown here.
    """
    snapshot = edm_pickle.read(path)
    key, saved = edm_pickle.chosen(snapshot, key)
    what = edm_networks.described(saved)
    state, dropped = edm_networks.relevant(edm_pickle.flatten(saved))
    others = tuple(one for one in snapshot if one != key)
    params = edm_networks.weights(what, state, levels_of(what.precond))
    return Converted(key, others, what, params, tuple(dropped))


def levels_of(scaling: Mapping[str, Any]) -> np.ndarray | None:
    """The table of noise levels that a preconditioner's state has, by its section; None if it has none."""
    return precond.iddpm_table(scaling.get("steps", 1000)) if scaling["name"] == "iddpm" else None


def model(what: Described) -> Model:
    """The model that a described network is."""
    return Model(edm_networks.built(what), precond.build(what.precond))


def denoised(what: Described, params: Params, x, sigma, labels=None) -> np.ndarray:
    """D(x; sigma, labels) (B,C,H,W) of images x (B,C,H,W), in the precision of x."""
    bound = model(what)
    # It runs once, so compiling is what costs.
    program = jax.jit(
        lambda p, x, sigma, cond: precond.denoiser(bound, p, cond)(x, sigma),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    cond = {} if labels is None else {"label": labels}
    return np.asarray(program(params, np.transpose(x, (0, 2, 3, 1)), sigma, cond)).transpose(0, 3, 1, 2)


def fixed_input(what: Described) -> dict[str, np.ndarray]:
    """Images x (2,C,H,W), levels sigma (2,) and, of classes, class_labels (2,K), all float32.

        x = sigma times standard normal values, numpy's RandomState(0);    labels 0 and 1 (mod K)
    """
    height, width, channels = what.shape
    sigma = np.clip(np.float32(LEVELS), *_ends(what)).astype(np.float32)
    x = np.random.RandomState(0).standard_normal((BATCH, channels, height, width)).astype(np.float32)
    given = {"x": x * sigma[:, None, None, None], "sigma": sigma}
    if what.classes:
        given["class_labels"] = np.eye(what.classes, dtype=np.float32)[np.arange(BATCH) % what.classes]
    return given


def parity(what: Described, params: Params, recorded: Path | None = None) -> dict[str, Any]:
    """What a network makes of the fixed input, and how far it is from outputs that others have recorded.

    Args:
      recorded: npz with x (B,C,H,W), sigma (B,), D (B,C,H,W) and, for classes, class_labels (B,K).
    Returns: numbers and texts, ready for JSON.
    Raises: ValueError if `recorded` is no such file, or of other shapes.
    """
    given = fixed_input(what)
    made = denoised(what, params, given["x"], given["sigma"], given.get("class_labels"))
    found = {
        "input": f"RandomState(0), x {list(given['x'].shape)} = sigma z, sigma {given['sigma'].tolist()}",
        "output_shape": list(made.shape),
        "output_mean": float(made.mean(dtype=np.float64)),
        "output_std": float(made.std(dtype=np.float64)),
    }
    if recorded is not None:
        theirs = _recorded(recorded, what)
        ours = denoised(
            what, params, *(np.float32(theirs[k]) for k in ("x", "sigma")),
            np.float32(theirs["class_labels"]) if "class_labels" in theirs else None,
        )  # fmt: skip
        found["recorded"] = {
            "file": recorded.name,
            "max_abs_difference": float(np.abs(ours - theirs["D"]).max()),
            "max_abs_output": float(np.abs(theirs["D"]).max()),
        }
    return found


def config(what: Described, data: Mapping[str, Any] | None = None) -> ConfigDict:
    """A teacher's config for a network; of what trains it nothing is known, and nothing is used.

    Args:
      data: section of the data that the network was trained on; None if these are not at hand.
    """
    made, shape = ConfigDict(), list(what.shape)
    made.seed, made.teacher, made.init_from = 0, "", ""
    made.data = dict(data or dict(name=unseen.NAME, shape=shape, classes=what.classes))
    made.models = dict(student=dict(network=dict(what.network), precond=dict(what.precond)))
    made.objective = dict(name=OBJECTIVES[what.precond["name"]])
    for name in set(what.precond) - {"name", "steps"}:
        made.objective[name] = what.precond[name]
    low, high = _ends(what)
    made.schedule = dict(name="polynomial", sigma_min=low, sigma_max=high, rho=7.0)
    usual = (("heun", 35), ("euler", 4), ("dpmpp_2m", 5))
    usual = {f"{name} {nfe}": dict(name=name, nfe=nfe) for name, nfe in usual}
    made.method = dict(name="teacher", samplers=student_sampler(what.settings) or usual)
    made.optimizers = dict(student=dict(name="adam", learning_rate=1e-4))
    made.mesh = dict(data=-1, fsdp=1)
    made.train = dict(batch_size=1, steps=1, log_every=1, save_every=1, keep=1, patience=1, writers=("jsonl",))
    panel = dict(name="images", features=dict(px=dict(name="pixels")), manifold="", nearest=False)
    made.evaluation = dict(
        kind="samples", panel=panel, num=1024, batch_size=64, seeds=(0,), teacher_samplers={}
    )
    settings.check(made)
    return made


def student_sampler(saved: Mapping[str, Any]) -> dict[str, dict]:
    """The sampler that a student of SFD was trained for, by the settings saved with it; {} if it is none.

    It is Euler's on levels that end above zero (arXiv:2409.19681); only its usual schedule is known here.
    """
    count, afs = saved.get("num_steps"), saved.get("afs")
    ends = {name: saved.get(name) for name in ("sigma_min", "sigma_max")} | {"rho": saved.get("schedule_rho")}
    known = type(count) is int and type(afs) is bool and saved.get("schedule_type") == "polynomial"
    if not known or not all(type(value) in (int, float) for value in ends.values()):
        return {}
    calls = count - 1 - afs
    if not 1 <= calls <= 1000 or not (0 < ends["sigma_min"] < ends["sigma_max"] < math.inf and ends["rho"] > 0):
        given = ", ".join(shown(str(value)) for value in (count, *ends.values()))
        raise ValueError(f"the snapshot's settings say no sampler (num_steps, sigmas and rho are {given}).")
    levels = dict(name="polynomial", zero=False, **{name: float(value) for name, value in ends.items()})
    return {f"student {calls}": dict(name="euler", nfe=calls, afs=afs, schedule=levels)}


def data_of(reference: str, what: Described) -> dict[str, Any]:
    """The data section of a config, for weights that were trained on these data.

    Raises: ValueError if its images or classes are not the network's.
    """
    wanted = experiment.load(reference)
    settings.check(wanted)
    outline = assemble.data_set(wanted, outline=True)
    classes = outline.classes if wanted.data.get("conditional", True) else 0
    if (tuple(outline.shape), classes) != (what.shape, what.classes):
        raise ValueError(
            f"--data {reference} has images {tuple(outline.shape)} of {classes} classes, the network is for "
            f"{what.shape} of {what.classes}; name its own data, or leave --data out."
        )
    return wanted.data.to_dict()


def write(out: Path, found: Converted, made: ConfigDict, about: Mapping[str, Any]) -> None:
    """Writes the folder `out` whole or not at all. Raises: ValueError if there is something already."""
    place(out, made, found.params, {"conversion.json": about, "README.md": readme(out, about)})


def place(out: Path, made: ConfigDict, params: Params, documents: Mapping[str, Any], step: int = 0) -> None:
    """Writes a folder of finished weights, as if they were trained there, whole or not at all.

    Args:
      documents: by file name: a text, or else what becomes JSON.
      step: that the weights are of.
    Raises: ValueError if there is something at `out` already.
    """
    check_absent(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with checkpoint.Store(partial, made.to_dict()) as store:
            store.finish(step, jax.tree.map(jax.numpy.asarray, params))
        (partial / ".lock").unlink()
        (partial / "checkpoints").rmdir()  # it was never trained here
        for name, content in documents.items():
            if isinstance(content, str):
                files.write(partial / name, content.encode())
            else:
                files.write_json(partial / name, content)
        check_absent(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_absent(out: Path) -> None:
    """Raises ValueError if there is anything at `out`."""
    if out.exists() or out.is_symlink():
        raise ValueError(
            f"{out} is there already, and nothing is overwritten; choose another place with --out."
        )


def described(path: Path, sha256: str, found: Converted, checked: Mapping[str, Any]) -> dict[str, Any]:
    """The document `conversion.json`."""
    values = found.what.settings
    return {
        "kind": "edm",
        "source": {"file": path.name, "sha256": sha256, "key": found.key,
                   "other_entries": [shown(one) for one in found.others]},
        "network": found.what.network,
        "precond": found.what.precond,
        "image_shape": list(found.what.shape),
        "classes": found.what.classes,
        "parameters": trees.count(found.params),
        "shapes": {name: list(leaf.shape) for name, leaf in trees.named(found.params)},
        "left_out": list(found.dropped),
        "settings": {
            shown(name): value if isinstance(value, int | None) or _finite(value) else shown(str(value))
            for name, value in values.items()
        },
        "parity": dict(checked),
        "licence": LICENCE,
    }


def readme(out: Path, about: Mapping[str, Any]) -> str:
    """The text for readers."""
    source, checked = about["source"], about["parity"]
    lines = [
        f"# {out.name}",
        "",
        f"Converted from `{source['file']}` (sha256 `{source['sha256']}`), entry `{source['key']}`.",
        f"Network `{about['network']['name']}` of {about['parameters']:,} parameters, preconditioner "
        f"`{about['precond']['name']}`, images {tuple(about['image_shape'])}, {about['classes']} classes.",
        "",
        f"On a fixed input ({checked['input']}) its output has mean {checked['output_mean']:.6g} and standard "
        f"deviation {checked['output_std']:.6g}.",
    ]
    if "recorded" in checked:
        other = checked["recorded"]
        lines += [
            f"From the outputs in `{other['file']}` it differs by at most {other['max_abs_difference']:.3g}, "
            f"where these reach {other['max_abs_output']:.3g}.",
        ]
    lines += [
        "",
        f'A config takes it by `config.teacher = "{out}"`; `launch/main.py --config {out} --mode sample` '
        "samples it.",
        "",
        "## Licence",
        "",
        about["licence"],
    ]
    return "\n".join(lines) + "\n"


def exported(workdir: Path) -> bytes:
    """The weights of a finished run of a U-Net as safetensors, by the names of the EDM code, buffers included.

    Those of a delta are its teacher's with the delta merged.
    Raises: ValueError if the folder holds no finished weights, or those of another network.
    """
    made = experiment.load(str(workdir)) if experiment.folder(str(workdir)) else None
    if made is None:
        raise ValueError(f"--workdir {workdir} is no folder of finished weights; name a finished run.")
    request = made.models.get("student")
    sections = {"network": {"name": None}} if request is None else assemble.resolved(request.to_dict(), made)
    network = sections["network"]
    if network["name"] not in edm_networks.NETWORKS.values():
        known = ", ".join(sorted(edm_networks.NETWORKS.values()))
        raise ValueError(f"{workdir} holds a network {network['name']}, the EDM code has none; known: {known}.")
    run = experiment.Experiment(workdir.name, made, workdir)
    job, mesh = assemble.assemble(made, outline=True), meshes.make(made.mesh)
    params = commands.product(job, run, mesh)
    if job.parts.adapter is not None:
        frozen, _ = commands.starting_weights(job, run, mesh)
        params = job.parts.adapter.merge(frozen["teacher"], params)
    options = dict(taps=edm_networks.taps(network), prefix=edm_networks.PREFIX)
    state = names.to_state(params, levels=levels_of(sections["precond"]), **options)
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    return safetensors.numpy.save(state, {"fastdiff_jax": json.dumps({"network": network}, sort_keys=True)})


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _ends(what: Described) -> tuple[float, float]:
    """EDM's noise levels for sampling, cut to what the network knows."""
    known = precond.build(what.precond)
    return max(0.002, known.sigma_min), min(80.0, known.sigma_max)


def _recorded(path: Path, what: Described) -> dict[str, np.ndarray]:
    wanted = ("x", "sigma", "D", "class_labels")
    try:
        content = path.read_bytes()
        found = npz.read(content, dict.fromkeys(wanted, npz.NUMBERS), MOST_OUTPUTS, absent=wanted)
    except (OSError, ValueError) as error:
        raise ValueError(f"--outputs {path} is no npz of recorded outputs: {error}.") from None
    height, width, channels = what.shape
    size = len(found["x"]) if np.ndim(found.get("x")) else 0
    shapes = {"x": (size, channels, height, width), "sigma": (size,), "D": (size, channels, height, width)}
    if what.classes:
        shapes["class_labels"] = (size, what.classes)
    for name, shape in shapes.items():
        if name not in found or found[name].shape != shape or not size:
            there = found[name].shape if name in found else "nothing"
            raise ValueError(f"--outputs {path}: {name} is {there}, and this network's would be {shape}.")
        if not np.isfinite(found[name]).all():
            raise ValueError(f"--outputs {path}: {name} is not finite, so it compares with nothing.")
    return {name: found[name] for name in shapes}
