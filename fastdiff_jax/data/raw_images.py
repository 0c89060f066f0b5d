"""Images as others publish them: TFDS, folders and zips, CIFAR-10's binary files and MNIST's.

launch/dataset.py makes sets in EDM's form of them. Nothing that needs a pickle is read.
"""

import gzip
import io
import math
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdiff_jax.data import archive, edm_zip, tfds

CIFAR_ROW = 1 + 3 * 32 * 32  # bytes: the class, then the planes
MOST_UNPACKED = 1 << 28  # bytes of a compressed file; CIFAR-10's has 184 million
OPAQUE = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}  # modes that are converted; L and RGB stay
KINDS = "tfds:NAME, a folder, a .zip, cifar-10-binary.tar.gz or train-images-idx3-ubyte.gz"

Labelled = tuple[np.ndarray, int | list | None]  # uint8 (H,W) or (H,W,3); class, vector, or no label


class Source(NamedTuple):
    """Where images come from."""

    count: int
    images: Callable[[], Iterator[Labelled]]
    note: str = ""  # as `types.Data`'s


def source(name: str, split: str = "train") -> Source:
    """What --from names. Raises: ValueError if it is not there, damaged, or can only be read by a pickle."""
    if name.startswith("tfds:"):
        return from_tfds(name.removeprefix("tfds:"), split)
    path = Path(name)
    if path.name.startswith("cifar-10-python"):
        raise ValueError(
            f"{name} holds pickles, which can run anything, and is not read; use --from tfds:cifar10, or "
            "cifar-10-binary.tar.gz from the same page."
        )
    if path.name.endswith("_lmdb") or (path / "data.mdb").exists():
        raise ValueError(f"{name} is an LMDB database, which is not read; export its images to a folder first.")
    if not path.exists():
        raise ValueError(f"there is no {name}; --from takes {KINDS}.")
    if path.is_dir() or path.suffix == ".zip":
        return from_files(path)
    if path.name.endswith(".tar.gz"):
        return from_cifar(path)
    if path.name.endswith("-ubyte.gz"):
        return from_idx(path)
    raise ValueError(f"{name} is none of what --from takes: {KINDS}.")


def from_tfds(name: str, split: str) -> Source:
    """A prepared TFDS data set, in its order; zero-padded to a power of two, as EDM pads 28 pixels to 32."""
    data = tfds.build({"dataset": name, "split": split})
    rows = data.train

    def images():
        for start in range(0, len(rows), 256):
            batch = rows.rows(np.arange(start, min(start + 256, len(rows))))
            for image, label in zip(batch["image"], batch["label"], strict=True):
                yield np.squeeze(image, -1) if image.shape[-1] == 1 else image, int(label)

    return Source(len(rows), images, data.note)


def from_files(path: Path) -> Source:
    """The images of a folder or zip, sorted by name.

    Labels are those of its dataset.json, by name; without that file, the rank of a top folder's name is the
    class, if there are several.
    """
    found = archive.opened(path)
    names = sorted(name for name in found.names if archive.is_image(name))
    if not names:
        raise ValueError(
            f"{path} has no images; names must end in {', '.join(archive.FORMATS)}, links are not read."
        )
    by_name, note = {}, ""
    if edm_zip.LABELS in found.names:
        content = found.read(edm_zip.LABELS, edm_zip.label_bytes(len(names)))
        by_name, note = edm_zip.described(content, f"{path}: {edm_zip.LABELS}")
        by_name = by_name or {}
    else:
        tops = [name.partition("/")[0] if "/" in name else "" for name in names]
        ranks = {top: rank for rank, top in enumerate(sorted(set(tops)))}
        if len(ranks) > 1:
            by_name = {name: ranks[top] for name, top in zip(names, tops, strict=True)}

    def images():
        for name in names:
            yield opaque(found.read(name), f"{path}: {archive.shown(name)}"), by_name.get(name)

    return Source(len(names), images, note)


def opaque(content: bytes, name: str) -> np.ndarray:
    """uint8 (H,W) or (H,W,3). Raises: ValueError for transparency, 16 bits, and what is no image."""
    found = archive.image(content, name)
    if found.mode not in ("L", "RGB"):
        if found.mode not in OPAQUE or "transparency" in found.info:
            raise ValueError(f"{name} is {found.mode}; convert it to gray or RGB without transparency first.")
        try:
            found = found.convert(OPAQUE[found.mode])
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{name} is damaged ({error}).") from None
    return archive.pixels(found, name)


def from_cifar(path: Path) -> Source:
    """CIFAR-10's binary version: the five training files, in order."""
    batches = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked(path))) as tar:
            for member in tar:
                match = re.search(r"(?:^|/)data_batch_([1-5])\.bin$", member.name)
                if match:
                    # A sparse member claims bytes that are nowhere in the file.
                    if not member.isreg() or member.issparse() or member.size > MOST_UNPACKED:
                        raise ValueError(
                            f"{path}: data_batch_{match[1]}.bin is no plain file, or too large; fetch it again."
                        )
                    batches[match[1]] = np.frombuffer(tar.extractfile(member).read(), np.uint8)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no tar ({error}); fetch it again.") from None
    if len(batches) < 5 or any(batch.size % CIFAR_ROW for batch in batches.values()):
        raise ValueError(f"{path} lacks CIFAR-10's data_batch_1.bin to 5.bin; fetch the binary version.")
    rows = np.concatenate([batches[key] for key in sorted(batches)]).reshape(-1, CIFAR_ROW)

    def images():
        for row in rows:
            yield row[1:].reshape(3, 32, 32).transpose(1, 2, 0), int(row[0])

    return Source(len(rows), images)


def from_idx(path: Path) -> Source:
    """MNIST's format; images of 28 pixels get two black ones around. The file of labels lies beside."""
    name = path.name.replace("images-idx3", "labels-idx1")
    if name == path.name or not (path.parent / name).is_file():
        raise ValueError(f"{path} must be named *-images-idx3-ubyte.gz, with its labels beside it in {name}.")
    pixels, classes = idx(path, 3), idx(path.parent / name, 1)
    if len(pixels) != len(classes):
        raise ValueError(f"{path} has {len(pixels)} images, {name} {len(classes)} labels; fetch both again.")
    border = 2 if pixels.shape[1:] == (28, 28) else 0

    def images():
        for image, label in zip(pixels, classes, strict=True):
            yield np.pad(image, border), int(label)

    return Source(len(pixels), images)


def idx(path: Path, axes: int) -> np.ndarray:
    """The uint8 array of an IDX file. Raises: ValueError if it is none of so many axes."""
    content = unpacked(path)
    if len(content) >= 4 + 4 * axes and content[:4] == bytes((0, 0, 8, axes)):
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
        if len(content) - 4 - 4 * axes == math.prod(shape):
            return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    raise ValueError(f"{path} is damaged or no IDX file of {axes} axes; fetch it again.")


def unpacked(path: Path) -> bytes:
    """What a .gz holds. Raises: ValueError if it is damaged, or longer than MOST_UNPACKED."""
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no gzip ({error}); fetch it again.") from None
    if len(content) > MOST_UNPACKED:
        raise ValueError(f"{path} unpacks to more than {MOST_UNPACKED:,} bytes, so it is not what it is named.")
    return content
