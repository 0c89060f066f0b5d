"""EDM's image sets: a zip or a folder of PNG files and their labels; launch/dataset.py makes them.

    00000/img00000000.png ...   square images of one size, gray or RGB
    dataset.json                {"labels": [[name, class], ...]}, or vectors for classes, or null; and a "note"
                                if this copy is not as published

Facts: arXiv:2206.00364, App. F, and the data tool of its code.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.data import archive, stored, tfds
from fastdiff_jax.types import Data

LABELS = "dataset.json"
LABEL_BYTES = 1 << 15  # of the labels' text, for one image
MOST_LABEL_BYTES = 1 << 27  # in all; ImageNet's have 45 million
MOST_NOTE = 200  # characters; reports and cards repeat it
PROBES = 256  # images that go into the fingerprint


class Settings(NamedTuple):
    """Which images, and what they are: a cost is told without the file, and the file must agree."""

    path: str  # of a .zip or a folder
    size: int  # side in pixels
    channels: int  # 1 or 3
    labels: int = 0  # classes; 0: none are read
    use_labels: bool | None = None  # None: if there are classes
    max_size: int = 0  # images to train on, a random choice; 0: all
    seed: int = 0  # of that choice
    xflip: bool = False  # every image a second time, mirrored
    max_reference: int = 0  # images to compare with; 0: all that are trained on, unmirrored
    in_memory: bool = False  # decode all images once, at the first batch


class Images:
    """An image set as EDM reads it: random access to uint8 images (H,W,C), in the order of their sorted names.

    With `max_size`, a random choice of that many; with `xflip`, mirrored copies behind them. `order` (N,)
    are numbers in the whole set, `flipped` (N,) says which are mirrored.

    Raises: ValueError if there is no such set, it is damaged, or it has no images.
    """

    def __init__(self, path: Path, max_size: int = 0, seed: int = 0, xflip: bool = False):
        self.files = archive.opened(path)
        self.names = sorted(name for name in self.files.names if archive.is_image(name))
        if not self.names:
            raise ValueError(
                f"{path} has no images; names must end in {', '.join(archive.FORMATS)}, links are not read."
            )
        order = np.arange(len(self.names))
        if max_size and max_size < len(order):
            np.random.RandomState(seed % 2**31).shuffle(order)
            order = np.sort(order[:max_size])
        self.flipped = np.repeat([False, True][: 1 + xflip], len(order))
        self.order = np.tile(order, 1 + xflip)

    def __len__(self) -> int:
        return len(self.order)

    def image(self, index: int, shape: tuple[int, int, int] | None = None) -> np.ndarray:
        """uint8 (H,W,C).

        Args:
          shape: that it must have; without, any.
        Raises: ValueError naming the file, if it is damaged, no image or of another kind.
        """
        number, where = int(self.order[index]), str(self.files.path)
        name = f"{where}: {archive.shown(self.names[number])}"
        found = archive.image(self.files.read(self.names[number]), name)
        if found.mode not in ("L", "RGB"):
            raise ValueError(f"{name} is {found.mode}, neither gray nor RGB; convert it by launch/dataset.py.")
        kind = (found.height, found.width, len(found.mode))
        if shape is not None and kind != shape:  # before anything is decoded
            raise ValueError(
                f"{name} is {_kind(kind)}, the config declares {_kind(shape)}; set config.data.size and "
                "channels to what the images are."
            )
        pixels = archive.pixels(found, name)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        return pixels[:, ::-1] if self.flipped[index] else pixels

    @functools.cached_property
    def description(self) -> tuple[dict[str, int | list] | None, str]:
        """`described` of `dataset.json`; (None, "") without one. Raises: ValueError as that."""
        if LABELS not in self.files.names:
            return None, ""
        content = self.files.read(LABELS, label_bytes(len(self.names)))
        return described(content, f"{self.files.path}: {LABELS}")

    @functools.cached_property
    def raw_labels(self) -> np.ndarray | None:
        """Of the whole set: int64 classes (n,), float32 vectors (n,K), or None if it has no labels.

        Raises: ValueError if `dataset.json` is no such document, or an image has no label.
        """
        where = f"{self.files.path}: {LABELS}"
        by_name, _ = self.description
        if by_name is None:
            return None
        without = [name for name in self.names if name not in by_name]
        if without:
            raise ValueError(
                f"{where} has no label for {archive.shown(without[0])}; label every image, or none."
            )
        return numbers([by_name[name] for name in self.names], where)

    @property
    def width(self) -> int:
        """Length of a label: number of classes, or of a vector's entries; 0 without labels."""
        raw = self.raw_labels
        if raw is None:
            return 0
        return raw.shape[1] if raw.ndim == 2 else int(raw.max()) + 1

    def labels(self) -> np.ndarray:
        """float32 (N,K): one-hot classes or the vectors themselves; (N,0) without labels."""
        raw = self.raw_labels
        if raw is None:
            return np.zeros((len(self), 0), np.float32)
        if raw.ndim == 1:
            raw = np.eye(self.width, dtype=np.float32)[raw]
        return raw[self.order]


class Source:
    """What the pipeline reads of an `Images`: rows of one shape, with class numbers, 0 where none are used."""

    def __init__(self, images: Images, settings: Settings):
        self.images, self.shape = images, (settings.size, settings.size, settings.channels)
        classes = images.raw_labels[images.order] if classes_of(settings) else np.zeros(len(images))
        self.classes = classes.astype(np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self._image(index), "label": int(self.classes[index])}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows `indices` (B,): {"image": (B,S,S,C) uint8, "label": (B,) int32}."""
        return {"image": np.stack([self._image(i) for i in indices]), "label": self.classes[indices]}

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """(B,) labels alone: no image is decoded."""
        return self.classes[indices]

    def _image(self, index: int) -> np.ndarray:
        return self.images.image(index, self.shape)


def label_bytes(images: int) -> int:
    """The most that the text of so many images' labels may take."""
    return min(archive.SLACK + LABEL_BYTES * images, MOST_LABEL_BYTES)


def described(content: bytes, where: str) -> tuple[dict[str, int | list] | None, str]:
    """What a `dataset.json` says: label by file name, None if there are none; and `types.Data`'s note.

    Raises: ValueError naming `where`, if it is another document.
    """
    try:
        # An image needs a name and two lists; lists without names could fill the memory.
        if content.count(b"[") + content.count(b"{") > 4 * content.count(b'"'):
            raise ValueError
        document = json.loads(content)
        entries, note = document["labels"], document.get("note", "")
        if not isinstance(note, str) or len(note) > MOST_NOTE or not note.isprintable():
            raise ValueError
        if entries is None:
            return None, note
        return {name.replace("\\", "/"): label for name, label in entries}, note
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f'{where} is not of the form {{"labels": [[name, label], ...]}} or null, its note a printable line.'
        ) from None


def numbers(labels: Sequence, where: str) -> np.ndarray:
    """Labels as int64 (n,) or float32 (n,K). Raises: ValueError naming `where`, if they are neither."""
    vectors = isinstance(labels[0], list)
    try:
        array = np.array(labels, np.float32 if vectors else None)
    except (ValueError, TypeError, OverflowError):
        array = np.array(None)
    fits = array.ndim == 2 if vectors else array.ndim == 1 and array.dtype.kind == "i"
    if not fits or not np.isfinite(array).all() or (not vectors and array.min() < 0):
        raise ValueError(f"{where} has labels that are neither class numbers nor vectors of one length.")
    if not vectors and array.max() >= max(1 << 16, len(array)):
        raise ValueError(f"{where} has a class number {array.max()}; classes are counted from 0.")
    return array if vectors else array.astype(np.int64)


def build(config: Mapping) -> Data:
    """The images at `path`, decoded when they are read; the reference is the same images, unmirrored.

    Raises: ValueError if they are not there, damaged, or not what the config declares.
    """
    settings = checked(config)
    path = Path(settings.path)
    if not path.exists():
        raise ValueError(
            f"there is no data set {path}; make it with launch/dataset.py --from SOURCE --out {path}, or set "
            "config.data.path."
        )
    images = Images(path, settings.max_size, settings.seed, settings.xflip)
    check_labels(images, settings)
    source = Source(images, settings)
    identity = fingerprint(source, settings)
    train = tfds.InMemory(source) if settings.in_memory else source
    unmirrored = tfds.chosen(int(np.sum(~images.flipped)), settings.max_reference)
    return Data(
        name=path.stem,
        train=train,
        reference=tfds.Reference(train, source, unmirrored),
        classes=classes_of(settings),
        encode=stored.encode,
        decode=stored.decode,
        fingerprint=identity,
        shape=source.shape,
        note=images.description[1],
    )


def outline(config: Mapping) -> Data:
    """The declared shape and classes alone: the file need not be there. Raises: ValueError as `checked`."""
    settings = checked(config)
    shape = (settings.size, settings.size, settings.channels)
    return stored.outline(Path(settings.path).stem, shape, classes_of(settings))


def checked(config: Mapping) -> Settings:
    """The settings. Raises: ValueError for unknown ones, and values out of range."""
    settings = registry.options(Settings, config, "data edm_zip")
    if settings.size < 1 or settings.size**2 > archive.MOST_PIXELS:
        raise ValueError(f"data edm_zip: size is the images' side in pixels; got {settings.size}.")
    if settings.channels not in (1, 3):
        raise ValueError(f"data edm_zip: channels are 1 or 3; got {settings.channels}.")
    for name in ("labels", "max_size", "seed", "max_reference"):
        if getattr(settings, name) < 0:
            raise ValueError(f"data edm_zip: {name} is not negative; got {getattr(settings, name)}.")
    if settings.use_labels and not settings.labels:
        raise ValueError("data edm_zip: use_labels needs the number of classes; set labels.")
    return settings


def classes_of(settings: Settings) -> int:
    """Classes that are read; 0 if none."""
    use = settings.use_labels
    return settings.labels if use or use is None else 0


def check_labels(images: Images, settings: Settings) -> None:
    """Raises ValueError if classes are to be read, and the set's labels are not that many classes."""
    declared = classes_of(settings)
    if not declared:
        return
    raw, path = images.raw_labels, images.files.path
    if raw is None:
        raise ValueError(
            f"{path} has no labels, the config declares {declared} classes; set config.data.labels=0."
        )
    if raw.ndim == 2:
        raise ValueError(
            f"{path} has vectors of {images.width} numbers for labels, and models take classes; set "
            "config.data.labels=0 to train without."
        )
    if images.width != declared:
        raise ValueError(
            f"{path} has {images.width} classes, the config declares {declared}; set "
            f"config.data.labels={images.width}."
        )


def fingerprint(source: Source, settings: Settings) -> str:
    """sha256 over what was asked, all labels and evenly spread images, as hashing all of them takes long."""
    asked = [source.shape, classes_of(settings), settings.max_size, settings.seed, settings.xflip]
    probes = source.rows(np.unique(np.linspace(0, len(source) - 1, PROBES).astype(int)))["image"]
    return stored.fingerprint(json.dumps([*asked, len(source)]).encode(), source.classes, probes)


def _kind(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} with {shape[2]} channel{'s' if shape[2] > 1 else ''}"
