"""The command line of launch/convert.py: published weights, as local files, into this package's own."""

import hashlib
from pathlib import Path

import numpy as np
from absl import flags

from fastdiff_jax.interop import lpips, torch_state
from fastdiff_jax.metrics import features
from fastdiff_jax.networks import vgg
from fastdiff_jax.runtime import command_line, experiment, files, perceptual, progress

USAGE = "python launch/convert.py --kind lpips --vgg FILE --heads FILE --out FILE.safetensors"


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
        raise ValueError(f"unknown argument {extra[0]!r}; usage: {USAGE}")
    for name in ("kind", "vgg", "heads", "out"):
        if not getattr(values, name):
            raise ValueError(f"no --{name} given; usage: {USAGE}")
    return values


def define(values: flags.FlagValues) -> None:
    """Defines the flags of launch/convert.py."""
    given = dict(flag_values=values)
    flags.DEFINE_enum("kind", None, list(KINDS), "What is converted.", **given)
    flags.DEFINE_string("vgg", None, "torchvision's VGG16, .pth or .safetensors.", **given)
    flags.DEFINE_string("heads", None, "LPIPS heads (version 0.1, vgg), .pth or .safetensors.", **given)
    flags.DEFINE_string("out", None, "File to write, .safetensors.", **given)


def from_lpips(values: flags.FlagValues) -> None:
    """Writes trunk and heads of LPIPS as one file, and says how a config asks for it.

    Raises: ValueError for files that are missing, damaged or not those, and for an impossible --out.
    """
    out = Path(values.out)
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"--out names a file that ends in .safetensors; got {str(out)!r}.")
    experiment.check_writable(out.parent, "--out")
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


def network_of(trunk: dict[str, dict[str, np.ndarray]]) -> dict:
    """The network that a trunk's weights are of; widths only where they are not VGG16's."""
    widths = [len(trunk[tap.replace("relu", "conv")]["bias"]) for tap in vgg.TAPS]
    usual = tuple(widths) == vgg.DEFAULTS["channels"]
    return perceptual.NETWORK | ({} if usual else {"channels": widths})


KINDS = {"lpips": from_lpips}
