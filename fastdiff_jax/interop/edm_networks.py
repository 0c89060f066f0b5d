"""Networks of the EDM code by how they were built: the `models` section that describes them, and their weights.

    record EDMPrecond {"sigma_data": 0.5, "_modules": {"model": record SongUNet {"_init_kwargs": {...}}}}
      ->  {"network": {"name": "song", "model_channels": 128, ...},
           "precond": {"name": "edm", "sigma_data": 0.5}}
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.interop import names
from fastdiff_jax.interop.edm_pickle import Plain, Record, flatten
from fastdiff_jax.interop.torch_state import Module
from fastdiff_jax.messages import shown
from fastdiff_jax.types import Network, Params

PREFIX = "model."  # of a network's names inside its preconditioner
# What the classes take for an argument that is not given.
COMMON = dict(channel_mult_emb=4, dropout=0.1, augment_dim=0)
ARGUMENTS = {
    "SongUNet": COMMON | dict(
        model_channels=128, channel_mult=(1, 2, 2, 2), num_blocks=4, attn_resolutions=(16,),
        embedding_type="positional", channel_mult_noise=1, encoder_type="standard", decoder_type="standard",
        resample_filter=(1, 1),
    ),
    "DhariwalUNet": COMMON | dict(
        model_channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3, attn_resolutions=(32, 16, 8),
    ),
}  # fmt: skip
NETWORKS = {"SongUNet": "song", "DhariwalUNet": "adm"}
# Arguments that are sizes of images and conditions, or only of interest to training.
OTHERS = {"img_resolution", "in_channels", "out_channels", "label_dim", "label_dropout"}
STEP = "use_step_condition"  # of SFD
TRAINING = "training_kwargs"  # attribute that SFD saves its settings in
HEADS = ("num_heads", "out_channels")  # attributes of a block
BLOCK = re.compile(r"enc\.(\d+)x\1_block(\d+)\.conv0\.weight")
# Attributes of a preconditioner by our argument, and its loss by our objective.
PRECONDS = {
    "EDMPrecond": dict(sigma_data="sigma_data"),
    "VPPrecond": dict(beta_d="beta_d", beta_min="beta_min", steps="M", eps="epsilon_t"),
    "VEPrecond": dict(sigma_min="sigma_min", sigma_max="sigma_max"),
    "iDDPMPrecond": dict(steps="M"),
}
FIXED = {"iDDPMPrecond": dict(C_1=0.001, C_2=0.008)}
OURS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
# No larger network is built from what a file says: building has its costs, and files may say anything.
MOST = dict(
    img_resolution=1024, in_channels=64, out_channels=128, label_dim=100_000, model_channels=4096,
    channel_mult=64, channel_mult_emb=64, num_blocks=32, attn_resolutions=1024, augment_dim=4096,
    channel_mult_noise=64, resample_filter=64, channels_per_head=4096, steps=100_000,
)  # fmt: skip
ABSENT = {"label_dim", "augment_dim"}  # of these, 0 says that there are none


class Described(NamedTuple):
    """A network of the EDM code in this package's terms."""

    network: dict[str, Any]  # section of a config
    precond: dict[str, Any]  # section of a config
    shape: tuple[int, int, int]  # (H,W,C) of its images
    classes: int  # 0 if it is unconditional
    settings: dict[str, Any]  # all plain attributes that it was saved with, SFD's settings among them


def described(saved: Record) -> Described:
    """What a saved preconditioner and the network in it are.

    Raises: ValueError naming a class, an argument or a value that is unknown here, and for SFD-v's students.
    """
    inner = _inside(saved, "_modules").get("model")
    if saved.name not in PRECONDS or not isinstance(inner, Record) or inner.name not in ARGUMENTS:
        inside = f" with a {shown(inner.name)}" if isinstance(inner, Record) else ""
        raise ValueError(
            f"the snapshot's network is a {shown(saved.name)}{inside}; known: {', '.join(PRECONDS)} with "
            f"{' or '.join(ARGUMENTS)} as its model."
        )
    arguments = _arguments(inner)
    size, channels = (arguments.pop(name) for name in ("img_resolution", "in_channels"))
    outputs, classes = arguments.pop("out_channels"), arguments.pop("label_dim", 0)
    network = {"name": NETWORKS[inner.name], **_presets(inner.name, arguments), "dtype": "float32"}
    if inner.name == "DhariwalUNet":
        network["channels_per_head"] = _head_width(inner)
    if outputs != channels:
        network["out_channels"] = outputs
    precond = {"name": OURS[saved.name]}
    for ours, theirs in PRECONDS[saved.name].items():
        precond[ours] = _number(theirs, saved.state.get(theirs), MOST.get(ours))
    for name, value in FIXED.get(saved.name, {}).items():
        if saved.state.get(name, value) != value:
            given = shown(saved.state[name])
            raise ValueError(f"the snapshot's {saved.name} has {name} {given}; known: {value}.")
    settings = {
        name: value
        for name, value in (saved.state | _inside(saved, TRAINING)).items()
        if isinstance(name, str) and name[:1] != "_" and type(value) in (str, int, float, bool, type(None))
    }
    if settings.get(STEP) or _inside(inner, "_init_kwargs").get(STEP):
        raise ValueError(
            "the snapshot is a student that is told its number of steps (SFD-v), which has no converter; train "
            "one by configs/sfdv_cifar10.py."
        )
    return Described(network, precond, (size, size, channels), classes, settings)


def weights(what: Described, state: Mapping[str, np.ndarray], levels: np.ndarray | None = None) -> Params:
    """The tree of a described network with the arrays of its state dict, float32.

    Args:
      levels: as of `names.from_state`.
    Raises: ValueError naming what is missing, left over, of another shape, filter or table, or not finite.
    """
    network = built(what)
    x = jax.ShapeDtypeStruct((1, *what.shape), jnp.float32)
    try:
        template = jax.eval_shape(network.init, jax.random.key(0), x)
    except (TypeError, ValueError, ZeroDivisionError) as error:  # whatever sizes that do not go together meet
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"the network that the snapshot describes cannot be built: {said}.") from None
    for name, value in state.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise ValueError(f"{shown(name)} of the snapshot is not finite; the file is damaged.")
    params = names.from_state(state, template, taps=taps(what.network), prefix=PREFIX, levels=levels)
    return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf, np.float32), params)


def relevant(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """A state dict without what the network does not use, and the names of that.

    That is the layers for a number of steps that every network of SFD has, also those that are told none.
    """
    dropped = [name for name in state if any("_step" in part for part in name.split("."))]
    return {name: value for name, value in state.items() if name not in dropped}, dropped


def taps(network: Mapping[str, Any]) -> tuple[int, ...]:
    """The resampling filter of a `network` section."""
    if "resample_filter" in network:
        return tuple(network["resample_filter"])
    presets = registry.load("networks", "song", "ARCHITECTURES")
    preset = presets[network.get("architecture", "ddpmpp")] if network["name"] == "song" else {}
    return tuple(preset.get("resample_filter", (1, 1)))


def built(what: Described) -> Network:
    """The network itself."""
    options = dict(what.network)
    return registry.load("networks", options.pop("name"))(options, what.shape, what.classes)


def _arguments(inner: Record) -> dict[str, Any]:
    """How a network was built, defaults included, checked for what they are."""
    given, known = inner.state.get("_init_kwargs"), ARGUMENTS[inner.name]
    if isinstance(inner, Plain):
        given = _read_off(inner)
    if not isinstance(given, dict) or inner.state.get("_init_args"):
        raise ValueError(f"the snapshot does not say by which named arguments its {inner.name} was built.")
    unknown = sorted(shown(name) for name in set(given) - set(known) - OTHERS - {STEP})
    missing = [name for name in ("img_resolution", "in_channels", "out_channels") if name not in given]
    if unknown or missing:
        what = f"unknown arguments {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
        raise ValueError(f"the snapshot's {inner.name} was built with {what}; known: {', '.join(known)}.")
    values = {name: value for name, value in (known | given).items() if name not in ("label_dropout", STEP)}
    return {name: _value(name, value, known.get(name)) for name, value in values.items()}


def _read_off(inner: Plain) -> dict[str, Any]:
    """The arguments of a network that was saved without them, by its parts and their shapes.

    Raises: ValueError if there are others than the two networks have.
    """
    arrays = flatten(inner)
    shape = {name: value.shape for name, value in arrays.items()}
    found = [(int(match[1]), int(match[2]), name) for name in shape if (match := BLOCK.fullmatch(name))]
    song = inner.name == "SongUNet"
    try:
        first = {size: shape[name][0] for size, index, name in found if index == 0}
        sizes = sorted(first, reverse=True)
        size = sizes[0]
        (wide, noise), (width, inputs) = shape["map_layer0.weight"], shape[f"enc.{size}x{size}_conv.weight"][:2]
        width = width if song else noise
        head = f"dec.{size}x{size}_aux_conv.weight" if song else "out_conv.weight"
        label, augment = (shape.get(f"map_{name}.weight", (0, 0))[1] for name in ("label", "augment"))
        block = _inside(_inside(inner, "_modules")["enc"], "_modules")[f"{size}x{size}_block0"]
        made = dict(
            img_resolution=size, in_channels=inputs, out_channels=shape[head][0], label_dim=label,
            augment_dim=augment, model_channels=width, channel_mult=[first[one] // width for one in sizes],
            channel_mult_emb=wide // width, num_blocks=len(found) // len(sizes), dropout=block.state["dropout"],
            attn_resolutions=[one for one in sizes if f"enc.{one}x{one}_block0.qkv.weight" in shape],
        )  # fmt: skip
        if song:
            aux = {name.rpartition("_aux_")[2].partition(".")[0] for name in shape if "_aux_" in name}
            made |= dict(
                embedding_type="fourier" if "map_noise.freqs" in shape else "positional",
                channel_mult_noise=noise // width,
                encoder_type="residual" if "residual" in aux else "skip" if "skip" in aux else "standard",
                decoder_type="skip" if "up" in aux else "standard",
            )
            kernels = [value for name, value in arrays.items() if name.endswith(f".{names.FILTER}")]
            if kernels:
                row = [float(tap) for tap in kernels[0][0, 0, 0, :16]]
                made["resample_filter"] = [round(tap / row[0]) for tap in row]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(f"the snapshot's {inner.name} has other parts than this network's.") from None
    return made


def _value(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, str):
        if isinstance(value, str):
            return shown(value)
        raise ValueError(f"the snapshot's network has {name} {shown(value)}, which is no text.")
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and len(value) <= 16:
            return tuple(_number(name, one, MOST[name]) for one in value)
        raise ValueError(f"the snapshot's network has {name} {shown(value)}, which is no short list.")
    return _number(name, value, MOST.get(name))


def _inside(module: Any, name: str) -> dict:
    """A dict among a module's attributes, empty if there is none."""
    found = module.state.get(name) if isinstance(module, Module) else None
    return found if isinstance(found, dict) else {}


def _number(name: str, value: Any, most: int | None) -> int | float:
    """A finite number from 0; with `most` whole, no larger, and 0 only where that says that there is none."""
    kinds = (int,) if most is not None else (int, float)
    limit = float("inf") if most is None else most + 1
    least = 0 if most is None or name in ABSENT else 1
    if type(value) not in kinds or not least <= value < limit:
        what = "a finite number from 0" if most is None else f"a whole number from {least} to {most}"
        raise ValueError(f"the snapshot's network has {name} {shown(value)}, which is not {what}.")
    return value


def _presets(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, an architecture's own replaced by its name."""
    if kind != "SongUNet":
        return arguments
    for name, preset in registry.load("networks", "song", "ARCHITECTURES").items():
        if all(arguments[key] == value for key, value in preset.items()):
            return {"architecture": name} | {k: v for k, v in arguments.items() if k not in preset}
    return arguments


def _head_width(inner: Record) -> int:
    """The channels of an attention head, which is an argument of every block."""
    found = set()
    for part in ("enc", "dec"):
        for block in _inside(_inside(inner, "_modules").get(part), "_modules").values():
            given = _inside(block, "_init_kwargs")
            if isinstance(block, Plain) and block.state.get("num_heads"):
                heads, wide = (_number(name, block.state.get(name), 1 << 20) for name in HEADS)
                given = {"channels_per_head": wide // heads}
            if "channels_per_head" in given:
                found.add(_number("channels_per_head", given["channels_per_head"], MOST["channels_per_head"]))
    if len(found) > 1:
        widths = sorted(found)
        raise ValueError(f"the snapshot's blocks have heads of {widths} channels; known: one width for all.")
    return found.pop() if found else 64
