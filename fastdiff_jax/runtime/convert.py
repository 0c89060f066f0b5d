"""The command line of launch/convert.py: published weights, as local files, into this package's, and back."""

import hashlib
from pathlib import Path

import numpy as np
from absl import flags

from fastdiff_jax.interop import lpips, torch_state
from fastdiff_jax.messages import shown
from fastdiff_jax.metrics import features
from fastdiff_jax.networks import vgg
from fastdiff_jax.runtime import (
    attached,
    command_line,
    converted,
    experiment,
    files,
    perceptual,
    progress,
)

NEEDED = {  # flags of every kind, besides --out
    "lpips": ("vgg", "heads"),
    "edm": ("file",),
    "export": ("workdir",),
    "lora": ("workdir",),
    "attach": ("file", "teacher"),
}
USAGES = {
    "lpips": "--kind lpips --vgg FILE --heads FILE --out FILE.safetensors",
    "edm": "--kind edm --file FILE.pkl --out DIR [--key NAME] [--outputs FILE.npz] [--data CONFIG]",
    "export": "--kind export --workdir RUN --out FILE.safetensors",
    "lora": "--kind lora --workdir RUN --out FILE.safetensors",
    "attach": "--kind attach --file FILE.safetensors --teacher RUN --out DIR",
}
USAGE = "\n".join(f"python launch/convert.py {usage}" for usage in USAGES.values())


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code, see `command_line`."""

    def command():
        values = parse(arguments)
        KINDS[values.kind](values)
        return 0

    return command_line.guarded(command)


def parse(arguments: list[str]) -> flags.FlagValues:
    """The flags. Raises: ValueError with one line for what is wrong with them, Help if it is asked for."""
    values = flags.FlagValues()
    define(values)
    if {"--help", "-help", "-h", "--helpfull"} & set(arguments[1:]):
        raise command_line.Help("\n".join([USAGE, *(f"  --{name}: {values[name].help}" for name in values)]))
    try:
        extra = values(arguments)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if extra:
        raise ValueError(f"unknown argument {extra[0]!r}; see --help.")
    if not values.kind:
        raise ValueError(f"no --kind given; known: {', '.join(KINDS)}.")
    usage = f"python launch/convert.py {USAGES[values.kind]}"
    for name in (*NEEDED[values.kind], "out"):
        if not getattr(values, name):
            raise ValueError(f"no --{name} given; usage: {usage}")
    for name in values:
        if values[name].using_default_value or f"--{name} " in f"{usage} ":
            continue
        raise ValueError(f"--{name} is no flag of --kind {values.kind}; usage: {usage}")
    return values


def define(values: flags.FlagValues) -> None:
    """Defines the flags of launch/convert.py."""
    given = dict(flag_values=values)
    flags.DEFINE_enum("kind", None, list(KINDS), "What is converted.", **given)
    flags.DEFINE_string("vgg", None, "torchvision's VGG16, .pth or .safetensors.", **given)
    flags.DEFINE_string("heads", None, "LPIPS heads (version 0.1, vgg), .pth or .safetensors.", **given)
    flags.DEFINE_string("file", None, "Snapshot of EDM, SiD or SFD, .pkl; of attach a delta.", **given)
    flags.DEFINE_string("key", None, "The snapshot's network; the averaged one by default.", **given)
    flags.DEFINE_string("outputs", None, "Outputs of the network to compare with: x, sigma, D, .npz.", **given)
    flags.DEFINE_string("data", None, "Config whose data the network was trained on.", **given)
    flags.DEFINE_string("workdir", None, "Finished run to export.", **given)
    flags.DEFINE_string("teacher", None, "Finished run of the teacher below a delta.", **given)
    flags.DEFINE_string("out", None, "What to write: .safetensors; of edm and attach a folder.", **given)


def from_lpips(values: flags.FlagValues) -> None:
    """Writes trunk and heads of LPIPS as one file, and says how a config asks for it.

    Raises: ValueError for files that are missing, damaged or not those, and for an impossible --out.
    """
    out = weight_file(values.out)
    sources = {"vgg": Path(values.vgg), "heads": Path(values.heads)}
    states = {role: torch_state.read(path) for role, path in sources.items()}
    params = lpips.from_states(states["vgg"], states["heads"])
    known = lpips.published(params["heads"])
    about = {
        "kind": "lpips",
        "network": network_of(params["trunk"]),
        "published_heads": known,
        "sources": {
            role: {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for role, path in sources.items()
        },
    }
    content = features.serialise(params, about)
    files.write(out, content)
    heads = "those of LPIPS 0.1" if known else "NOT those of LPIPS 0.1"
    progress.say(
        f"wrote {out}; by their sums, the heads are {heads}. In a config:\n"
        f'lpips=dict(weights="{out}", sha256="{hashlib.sha256(content).hexdigest()}", variant="sfd")'
    )


def from_edm(values: flags.FlagValues) -> None:
    """Writes a network of the EDM code as a folder that configs can name, and says what it makes of an input.

    Raises: ValueError for files that are missing, damaged, hostile or of other networks, for recorded outputs
      that do not fit, and for an impossible --out.
    """
    path, out = Path(values.file), Path(values.out)
    converted.check_absent(out)
    experiment.check_writable(out.parent, "--out")
    found = converted.read(path, values.key)
    data = converted.data_of(values.data, found.what) if values.data else None
    made = converted.config(found.what, data)
    checked = converted.parity(found.what, found.params, Path(values.outputs) if values.outputs else None)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = converted.described(path, sha256, found, checked)
    converted.write(out, found, made, about)
    others = ", ".join(map(shown, found.others)) or "nothing"
    progress.say(
        f"wrote {out}: entry {found.key!r} of {path.name} (others there: {others}), network "
        f"{found.what.network['name']} of {about['parameters']:,} parameters, precond "
        f"{found.what.precond['name']}, images {found.what.shape}, {found.what.classes} classes"
    )
    progress.say(
        f"on the fixed input: mean {checked['output_mean']:.6g}, standard deviation {checked['output_std']:.6g}"
    )
    if "recorded" in checked:
        other = checked["recorded"]
        progress.say(
            f"from {other['file']}: at most {other['max_abs_difference']:.3g} off, where outputs reach "
            f"{other['max_abs_output']:.3g}"
        )
    progress.say(f'In a config: config.teacher = "{out}". {converted.LICENCE}')


def to_safetensors(values: flags.FlagValues) -> None:
    """Writes the weights of a finished run by the names of the EDM code.

    Raises: ValueError if it is not finished or of another network, and for an impossible --out.
    """
    out = weight_file(values.out)
    converted.check_absent(out)
    content = converted.exported(Path(values.workdir))
    files.write(out, content)
    progress.say(f"wrote {out}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def from_lora(values: flags.FlagValues) -> None:
    """Writes the delta of a finished run alone.

    Raises: ValueError if it is not finished or trained a whole network, and for an impossible --out.
    """
    out = weight_file(values.out)
    converted.check_absent(out)
    content = attached.exported(Path(values.workdir))
    files.write(out, content)
    progress.say(f"wrote {out}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def to_teacher(values: flags.FlagValues) -> None:
    """Writes a folder in which a delta belongs to another copy of its teacher, to be sampled and measured.

    Raises: ValueError for a file that is no delta, a delta of other targets, shapes or weights, and for an
      impossible --out.
    """
    out = Path(values.out)
    converted.check_absent(out)
    experiment.check_writable(out.parent, "--out")
    said = attached.attach(Path(values.file), values.teacher, out)
    progress.say(f"wrote {out}: {said}; launch/main.py --config {out} --mode sample samples it.")


def weight_file(name: str) -> Path:
    """The path of --out for weights. Raises: ValueError if it cannot be."""
    out = Path(name)
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"--out names a file that ends in .safetensors; got {name!r}.")
    experiment.check_writable(out.parent, "--out")
    return out


def network_of(trunk: dict[str, dict[str, np.ndarray]]) -> dict:
    """The network that a trunk's weights are of; widths only where they are not VGG16's."""
    widths = [len(trunk[tap.replace("relu", "conv")]["bias"]) for tap in vgg.TAPS]
    usual = tuple(widths) == vgg.DEFAULTS["channels"]
    return perceptual.NETWORK | ({} if usual else {"channels": widths})


KINDS = {
    "lpips": from_lpips,
    "edm": from_edm,
    "export": to_safetensors,
    "lora": from_lora,
    "attach": to_teacher,
}
