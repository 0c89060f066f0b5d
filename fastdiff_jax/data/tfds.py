"""Image sets of tensorflow_datasets without TensorFlow: array_record files, decoded by Pillow."""

import contextlib
import io
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fastdiff_jax import registry
from fastdiff_jax.data import stored
from fastdiff_jax.types import Data

MODES = {1: "L", 3: "RGB"}
PROBES = 256  # records that go into the fingerprint
# Published as plain pixels: where such a set is stored as JPEG, it is not what others measure with.
UNCOMPRESSED = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "svhn_cropped")
JPEG, RECOMPRESSED = b"\xff\xd8", "JPEG-recompressed local copy"


class Settings(NamedTuple):
    """Which images, and how they are made to fit."""

    dataset: str  # such as "cifar10" or "fashion_mnist"
    split: str = "train"
    size: int = 0  # side in pixels; 0: the native one, zero-padded to a power of two
    channels: int = 0  # 1 or 3; 0: the native ones
    max_reference: int = 0  # images to compare with, a fixed random choice; 0: all
    in_memory: bool = False  # decode all images once, at the first batch
    quantiser: str = "edm"  # how generated images become 8-bit ones, see data/stored.py


class Source:
    """Random access to decoded uint8 images (S,S,C) and their labels."""

    def __init__(self, records: Sequence, side: int, channels: int):
        self.records, self.side, self.channels = records, side, channels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        batch = self.rows(np.array([index]))
        return {"image": batch["image"][0], "label": int(batch["label"][0])}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows `indices` (B,) as arrays; array_record reads them in one call."""
        elements = self.elements(indices)
        images = np.stack([fit(decoded(e["image"], self.channels), self.side) for e in elements])
        return {"image": images, "label": np.array([e["label"] for e in elements], np.int32)}

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """(B,) labels alone: no image is decoded."""
        return np.array([e["label"] for e in self.elements(indices)], np.int32)

    def elements(self, indices: np.ndarray) -> list[dict]:
        """Records with their images still in PNG or JPEG."""
        return self.records.__getitems__([int(i) for i in indices])


class InMemory:
    """A source that decodes everything once, when it is first read."""

    def __init__(self, source: Source):
        self.source, self.kept, self.lock = source, None, threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        return self.decoded[index]

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows `indices` (B,) as arrays."""
        return self.decoded.rows(indices)

    def __getstate__(self):
        return self.source  # another process decodes for itself

    def __setstate__(self, source):
        self.__init__(source)

    @property
    def decoded(self) -> stored.Rows:
        with self.lock:  # the pipeline reads from several threads
            if self.kept is None:
                batch = self.source.rows(np.arange(len(self.source)))
                self.kept = stored.Rows(batch["image"], batch["label"])
        return self.kept


class Reference(Mapping):
    """The images to compare with; each array is decoded when it is first asked for, and kept."""

    def __init__(self, train: Source | InMemory, source: Source, indices: np.ndarray):
        self.makers = {
            "image": lambda: train.rows(indices)["image"],
            "label": lambda: source.labels(indices),
            "split": lambda: np.zeros(len(indices), np.int32),  # all of them are trained on
        }
        self.made: dict[str, np.ndarray] = {}

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.made:
            self.made[key] = self.makers[key]()
        return self.made[key]

    def __iter__(self):
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


def decoded(encoded: bytes, channels: int) -> np.ndarray:
    """PNG or JPEG -> uint8 (H,W,C); gray is repeated to 3 channels, colour becomes luma in 1."""
    image = Image.open(io.BytesIO(encoded))
    mode = MODES[channels]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H,H,C) -> (side,side,C): as it is, or zero-padded to a power of two and averaged down.

    Averages are over square blocks, in float32, rounded to uint8 (half to even).
    """
    native = image.shape[0]
    if side == native:
        return image
    padded = power_of_two(native)
    before = (padded - native) // 2
    image = np.pad(image, ((before, padded - native - before),) * 2 + ((0, 0),))
    if side == padded:
        return image
    block = padded // side
    blocks = image.reshape(side, block, side, block, -1).astype(np.float32)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)


def power_of_two(side: int) -> int:
    """The smallest power of two that is not below `side`."""
    return 1 << (side - 1).bit_length()


def build(config) -> Data:
    """Images of a prepared TFDS data set with features "image" (square) and "label".

    The directory is $TFDS_DATA_DIR, or TFDS's own default; nothing is downloaded. Images are
    decoded when they are read; the reference is the same split.

    Raises: ValueError if the data set is unknown or not prepared, or the settings do not fit it.
    """
    settings = registry.options(Settings, config, "data tfds")
    import tensorflow_datasets as tfds  # late: half a second of imports

    builder = prepared(tfds, settings.dataset)
    shape, classes = described(builder, settings.dataset)
    if settings.split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"{settings.dataset} has no split {settings.split!r}; known: {known}.")
    side, channels = fitted(settings, shape)
    still_encoded = {"image": tfds.decode.SkipDecoding()}
    try:
        records = builder.as_data_source(split=settings.split, decoders=still_encoded)
    except NotImplementedError as error:  # TFRecord files have no random access
        raise ValueError(
            f"data set {settings.dataset} in {builder.data_dir} is stored as "
            f"{builder.info.file_format.value}; prepare it with --file_format=array_record."
        ) from error
    source = Source(records, side, channels)
    try:
        identity = fingerprint(source, builder.info.full_name, settings)
    except RuntimeError as error:  # array_record's, at the first read
        raise ValueError(
            f"data set {settings.dataset} in {builder.data_dir} is damaged or incomplete; prepare it "
            f"again. ({str(error).splitlines()[0]})"
        ) from error
    train = InMemory(source) if settings.in_memory else source
    return Data(
        name=settings.dataset,
        train=train,
        reference=Reference(train, source, chosen(len(source), settings.max_reference)),
        classes=classes,
        encode=stored.QUANTISERS[settings.quantiser],
        decode=stored.decode,
        fingerprint=identity,
        shape=(side, side, channels),
        note=note(source, settings.dataset),
    )


def note(source: Source, name: str) -> str:
    """RECOMPRESSED for JPEG copies of images that are published as plain pixels, else nothing."""
    jpeg = source.elements([0])[0]["image"].startswith(JPEG)
    return RECOMPRESSED if jpeg and name in UNCOMPRESSED else ""


def fitted(settings: Settings, shape: tuple[int, ...]) -> tuple[int, int]:
    """(side, channels) of the images asked for. Raises: ValueError if the native ones do not fit."""
    native, padded = shape[0], power_of_two(shape[0])
    side, channels = settings.size or padded, settings.channels or shape[2]
    if side != native and (side > padded or side != power_of_two(side)):
        raise ValueError(
            f"{settings.dataset} is {native} pixels wide; size must be that or a power of two "
            f"up to {padded}; got {settings.size}."
        )
    if settings.quantiser not in stored.QUANTISERS:
        known = ", ".join(stored.QUANTISERS)
        raise ValueError(f"{settings.dataset} has no quantiser {settings.quantiser!r}; known: {known}.")
    if channels not in MODES:
        raise ValueError(f"{settings.dataset}: channels must be 1 or 3; got {channels}.")
    return side, channels


def outline(config) -> Data:
    """The shape and classes alone, from TFDS's own description: the data set need not be there.

    Raises: ValueError as `build`, but for data that are not prepared.
    """
    settings = registry.options(Settings, config, "data tfds")
    import tensorflow_datasets as tfds

    shape, classes = described(found(tfds, settings.dataset), settings.dataset)
    side, channels = fitted(settings, shape)
    return stored.outline(settings.dataset, (side, side, channels), classes)


def found(tfds: Any, name: str) -> Any:
    """The builder of a data set, on disk or not. Raises: ValueError if TFDS knows none of that name."""
    try:
        with quiet():
            return tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except ValueError as error:
        raise ValueError(f"TFDS has no data set {name!r}: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def quiet():
    """Without TFDS's warnings of a missing folder, which would come ahead of our own error."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def prepared(tfds: Any, name: str) -> Any:
    """The builder of a data set that is on disk.

    Raises: ValueError that says how to prepare it; reading it would fail far from the cause.
    """
    folder, builder = os.environ.get("TFDS_DATA_DIR"), found(tfds, name)
    with quiet():
        ready = builder.is_prepared()
    if not ready:
        raise ValueError(
            f"data set {name} is not prepared in {builder.data_dir} (TFDS_DATA_DIR is "
            f"{folder or 'not set'}); point TFDS_DATA_DIR to a folder that has it, or prepare it "
            f"once, where TensorFlow is installed: tfds build {name} --file_format=array_record."
        )
    return builder


def described(builder: Any, name: str) -> tuple[tuple[int, int, int], int]:
    """The (H,W,C) of one image and the number of classes.

    Raises: ValueError if the data set is not one of square, labelled images of one size.
    """
    features = builder.info.features
    shape = tuple(features["image"].shape) if "image" in features else ()
    classes = getattr(features["label"], "num_classes", None) if "label" in features else None
    if len(shape) != 3 or None in shape or shape[0] != shape[1] or not classes:
        raise ValueError(
            f"{name} is not a set of square images of one size with class labels, but of "
            f"{', '.join(f'{key} {value.shape}' for key, value in features.items())}."
        )
    return shape, classes


def chosen(total: int, most: int) -> np.ndarray:
    """The reference's indices: all, or `most` of them, in order (EDM's max_size rule, seed 0)."""
    if not most or most >= total:
        return np.arange(total)
    return np.sort(np.random.RandomState(0).permutation(total)[:most])


def fingerprint(source: Source, full_name: str, settings: Settings) -> str:
    """sha256 over what was asked and evenly spread records, as hashing all of them takes long."""
    asked = f"{full_name}/{settings.split}/{len(source)}/{source.side}/{source.channels}"
    probes = source.elements(np.unique(np.linspace(0, len(source) - 1, PROBES).astype(int)))
    labels = np.array([e["label"] for e in probes])
    return stored.fingerprint(asked.encode(), labels, *[e["image"] for e in probes])
