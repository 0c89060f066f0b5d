"""Feature nets: images to vectors in which image sets are compared.

A distance belongs to one set of weights, so a net is named by its file's sha256, and a file with
another is refused; of Inception, a resize protocol belongs to it as well.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fastdiff_jax import registry, trees
from fastdiff_jax.interop import inception, torch_state
from fastdiff_jax.metrics import resizing
from fastdiff_jax.types import Array, Params

WEIGHTS = Path(__file__).parent / "weights"  # shipped with the package
KEY = "fastdiff_jax"  # one entry: safetensors keeps no order among several, and the file is hashed


class Features(NamedTuple):
    """A feature net. `apply` takes its weights as an argument, as every network here does."""

    name: str
    sha256: str  # of the weight file; empty when there is none
    dim: int
    params: Params
    # (params, images in model units (B,...)) -> features (B,D), and logits (B,K) or None
    apply: Callable[[Params, Array], tuple[Array, Array | None]]
    metadata: Mapping[str, Any]  # of the weight file
    judges: bool = False  # whether its logits are of the data's classes
    stored: bool = False  # whether `apply` takes images as they are stored, uint8 as float32
    batch: int = 512  # images at a time, on one device


class Settings(NamedTuple):
    """Which net."""

    weights: str  # file stem
    sha256: str
    folder: str = ""  # of the file; empty: the shipped ones


def build(config, shape: tuple[int, ...]) -> Features:
    """The net that `config.name` asks for, with the settings of that name.

        pixels       `PixelSettings`
        classifier   `Settings`: a net that was trained by a config
        inception    `InceptionSettings`: FID's, from a published file

    Args:
      shape: of one image; a net made for another is refused.
    Raises: ValueError for an unknown name or setting, or a file that is not the one asked for.
    """
    if config["name"] not in NETS:
        raise ValueError(f"no features {config['name']!r}; known: {', '.join(NETS)}.")
    return NETS[config["name"]](config, shape)


def classifier(config, shape: tuple[int, ...]) -> Features:
    """A net that was trained by a config, see `load`."""
    settings = registry.options(Settings, config, "features classifier")
    net = load(
        settings.weights, settings.sha256, Path(settings.folder) if settings.folder else WEIGHTS
    )
    if tuple(net.metadata["shape"]) != tuple(shape):
        raise ValueError(
            f"features {settings.weights} are of images {tuple(net.metadata['shape'])}, the data "
            f"has {tuple(shape)}; use a net that was trained on it."
        )
    return net


class PixelSettings(NamedTuple):
    """How fine pixels are looked at."""

    pool: int = 1  # side of the blocks that are averaged: Frechet distances cost the dimension cubed


def pixels(config, shape: tuple[int, ...]) -> Features:
    """The images themselves, flattened, after means over blocks: needs no network, sees no meaning.

    Raises: ValueError if the blocks do not tile the image.
    """
    pool = registry.options(PixelSettings, config, "features pixels").pool
    if pool != 1 and (len(shape) != 3 or pool < 1 or shape[0] % pool or shape[1] % pool):
        raise ValueError(f"features pixels: blocks of {pool} do not tile {shape}; use a divisor of the sides.")

    def apply(params, images):
        if pool > 1:
            height, width, channels = shape
            blocks = (len(images), height // pool, pool, width // pool, pool, channels)
            images = images.reshape(blocks).mean((2, 4))
        return images.reshape(len(images), -1), None

    size = int(np.prod(shape)) // (pool**2 if pool > 1 else 1)
    name = "pixels" if pool == 1 else f"pixels, {pool}x{pool} means"
    return Features(name, "", size, {}, apply, {})


class InceptionSettings(NamedTuple):
    """Whose file, and how images are made to fit."""

    weights: str  # path of pytorch-fid's file, or of one with its names that torch or safetensors wrote
    protocol: str = "tf1"  # resize and scale, see metrics/resizing.py
    sha256: str = ""  # what the file's must be; empty: any, and what it was is reported


INCEPTION = "inception-2015-12-05"  # what the published weights are called in reports


def fid_inception(config, shape: tuple[int, ...]) -> Features:
    """FID's Inception-v3: 2048 pooled features, and the 1008 logits without bias that the score takes.

    It reads uint8 images, as metrics are of what was stored; grey ones are repeated to three channels.

    Raises: ValueError for data that are no images, an unknown protocol, or a file that is missing, of another
      hash, or not of this network.
    """
    settings = registry.options(InceptionSettings, config, "features inception")
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"features inception take images (H,W,1) or (H,W,3); the data has {tuple(shape)}.")
    if settings.protocol not in resizing.PROTOCOLS:
        raise ValueError(
            f"features inception: no protocol {settings.protocol!r}; known: {', '.join(resizing.PROTOCOLS)}."
        )
    path = Path(settings.weights)
    if not path.is_file():
        raise ValueError(
            f"there are no Inception weights {str(path)!r}; name pytorch-fid's "
            f"pt_inception-2015-12-05-{inception.PUBLISHED}.pth on this machine, nothing is downloaded."
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if settings.sha256 and found != settings.sha256:
        raise ValueError(
            f"Inception weights {path.name}: asked for sha256 {settings.sha256}, the file has {found}."
        )
    params = inception.from_state(torch_state.read(path))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    known = found.startswith(inception.PUBLISHED)
    network = registry.load("networks", "inception")({}, (resizing.SIDE, resizing.SIDE, 3), 0)

    def apply(params, images):
        inputs = resizing.network_input(images, settings.protocol)
        levels = jnp.zeros(len(images), images.dtype)
        _, taps = network.apply(params, inputs, levels, {}, taps=("pool", "unbiased"))
        return taps["pool"], taps["unbiased"]

    about = {"weights": INCEPTION if known else "", "resize": settings.protocol}
    name = f"{INCEPTION if known else 'inception of unknown weights'} ({settings.protocol})"
    dim = network_dim(apply, params, shape)
    return Features(name, found, dim, params, apply, about, stored=True, batch=64)


def network_dim(apply: Callable, params: Params, shape: tuple[int, ...]) -> int:
    """D of the features that `apply` makes of images of a shape."""
    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(apply, params, example)[0].shape[-1]


NETS = {"pixels": pixels, "classifier": classifier, "inception": fid_inception}


def identity(net: Features) -> dict[str, str]:
    """What must be equal for two distances to compare."""
    return {"net": net.name, "sha256": net.sha256, **(net.metadata if net.stored else {})}


def load(name: str, sha256: str, folder: Path = WEIGHTS) -> Features:
    """A trained network whose activations are features, from `<folder>/<name>.safetensors`.

    Raises: ValueError if the file is missing, has another hash, or is no feature net.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise ValueError(f"there are no feature weights {name!r} in {folder}; known: {known}.")
    params, metadata = read(path, sha256)
    options = dict(metadata["network"])
    network = registry.load("networks", options.pop("name"))(
        options, tuple(metadata["shape"]), metadata["classes"]
    )

    def apply(params, images):
        levels = jnp.zeros(len(images), images.dtype)
        logits, taps = network.apply(params, images, levels, {}, taps=(metadata["tap"],))
        return taps[metadata["tap"]], logits

    dim = network_dim(apply, params, tuple(metadata["shape"]))
    return Features(name, sha256, dim, params, apply, metadata, judges=True)


def read(path: Path, sha256: str) -> tuple[Params, dict[str, Any]]:
    """(params, metadata) of a weight file that `serialise` made.

    Raises: ValueError if it has another hash, or is no such file.
    """
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"feature weights {path.stem}: asked for sha256 {sha256 or '(none)'}, the file has {found}; "
            f"distances in other weights do not compare: restore the file or state its hash."
        )
    return deserialise(content, path.stem)


def metadata(
    network: Mapping[str, Any], shape: tuple[int, ...], classes: int, **facts: Any
) -> dict[str, Any]:
    """What a weight file says of itself.

    Args:
      network: name and options of the network.
      facts: what else a reader should know: the data's fingerprint, the accuracy.
    """
    known = {"network": dict(network), "shape": list(shape), "classes": classes, "tap": "features"}
    return {**known, **facts}


def serialise(params: Params, metadata: Mapping[str, Any]) -> bytes:
    """The weight file: float32 safetensors, leaves named by path; equal weights, equal bytes."""
    tensors = {name: np.asarray(leaf, np.float32) for name, leaf in trees.named(params)}
    return safetensors.numpy.save(tensors, {KEY: json.dumps(metadata, sort_keys=True)})


def deserialise(content: bytes, name: str) -> tuple[Params, dict[str, Any]]:
    """(params, metadata) of a weight file.

    Raises: ValueError if it is damaged or was not made by `serialise`.
    """
    try:
        tensors = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        described = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY])
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"feature weights {name} are no feature net of this package: {error!r}."
        ) from error
    params: dict = {}
    for path, tensor in tensors.items():
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    return params, described


def stream(net: Features, decode: Callable[[np.ndarray], np.ndarray], batch_size: int = 0,
           shardings: tuple | None = None):  # fmt: skip
    """A function from stored images (N,...) to batches {"features": (B,D), "logits": (B,K) if there are any}.

    One program serves every N: the last batch is padded, and the padding dropped again.

    Args:
      decode: stored values -> model units.
      batch_size: images at a time, on every device; 0: what suits the net.
      shardings: of a whole array, which weights and results get, and of a batch's rows: then all their devices
        share a batch, of all processes, and each process gets all rows. None: one device.
    """
    batch_size = batch_size or net.batch
    if shardings is None:
        apply, place, params = jax.jit(net.apply), lambda part: part, jax.device_put(net.params)
    else:
        whole, rows = shardings
        params = jax.device_put(net.params, whole)
        apply = jax.jit(net.apply, in_shardings=(whole, rows), out_shardings=whole)
        place = lambda part: jax.make_array_from_callback(part.shape, rows, part.__getitem__)
        batch_size *= rows.mesh.size

    def batches(stored: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        if not len(stored):
            raise ValueError(f"features {net.name} of an empty set of images.")
        if net.stored and stored.dtype != np.uint8:
            raise ValueError(f"features {net.name} are of stored images, uint8; got {stored.dtype}.")
        for start in range(0, len(stored), batch_size):
            part = stored[start : start + batch_size]
            part = part.astype(np.float32) if net.stored else decode(part)
            padding = [(0, batch_size - len(part))] + [(0, 0)] * (part.ndim - 1)
            features, logits = jax.device_get(apply(params, place(np.pad(part, padding))))
            made = {"features": features} if logits is None else {"features": features, "logits": logits}
            yield {key: values[: len(part)] for key, values in made.items()}

    return batches


def extractor(net: Features, decode: Callable[[np.ndarray], np.ndarray], batch_size: int = 0):
    """A function from stored images (N,...) to features (N,D) and logits (N,K), or None: `stream`, joined."""
    batches = stream(net, decode, batch_size)

    def extract(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        made = list(batches(stored))
        joined = {key: np.concatenate([batch[key] for batch in made]) for key in made[0]}
        return joined["features"], joined.get("logits")

    return extract
