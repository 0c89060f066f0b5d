"""Feature nets: images to vectors in which image sets are compared.

A distance belongs to one set of weights, so a net is named by its file's sha256, and a file with
another is refused.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fastdiff_jax import registry, trees
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


class Settings(NamedTuple):
    """Which net."""

    weights: str  # file stem
    sha256: str
    folder: str = ""  # of the file; empty: the shipped ones


def build(config, shape: tuple[int, ...]) -> Features:
    """The net that `config.name` asks for: "pixels", or "classifier" with `weights` and `sha256`.

    Args:
      shape: of one image; a net made for another is refused.
    Raises: ValueError for an unknown name or setting, or a file that is not the one asked for.
    """
    if config["name"] == "pixels":
        return pixels(shape, **registry.options(PixelSettings, config, "features pixels")._asdict())
    if config["name"] != "classifier":
        raise ValueError(f"no features {config['name']!r}; known: pixels, classifier.")
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


def pixels(shape: tuple[int, ...], pool: int = 1) -> Features:
    """The images themselves, flattened, after means over blocks: needs no network, sees no meaning.

    Raises: ValueError if the blocks do not tile the image.
    """
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

    example = jax.ShapeDtypeStruct((1, *metadata["shape"]), jnp.float32)
    dim = jax.eval_shape(apply, params, example)[0].shape[-1]
    return Features(name, sha256, dim, params, apply, metadata)


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


def extractor(net: Features, decode: Callable[[np.ndarray], np.ndarray], batch_size: int = 512):
    """A function from stored images (N,...) to features (N,D) and logits (N,K), or None.

    One program serves every N: the last batch is padded, and the padding dropped again.
    """
    apply = jax.jit(net.apply)

    def extract(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if not len(stored):
            raise ValueError(f"features {net.name} of an empty set of images.")
        made = []
        for start in range(0, len(stored), batch_size):
            part = decode(stored[start : start + batch_size])
            padding = [(0, batch_size - len(part))] + [(0, 0)] * (part.ndim - 1)
            made.append(jax.device_get(apply(net.params, np.pad(part, padding))))
        features, logits = zip(*made)
        whole = lambda parts: np.concatenate(parts)[: len(stored)]
        return whole(features), None if logits[0] is None else whole(logits)

    return extract
