"""Stored values: the 8-bit rule of images, rows in memory, and what identifies them."""

import hashlib

import numpy as np

from fastdiff_jax.types import Data


def encode(images: np.ndarray) -> np.ndarray:
    """(N,...) model units -> uint8 trunc(clip(127.5 x + 128, 0, 255)), computed in float32.

    -1 -> 0, 0 -> 128, 1 -> 255; half ties round up. Inverts `decode` exactly.

    Raises: ValueError naming the first image with a NaN.
    Source: the EDM family's image writer (arXiv:2206.00364).
    """
    images = without_nan(images)
    return np.clip(np.float32(127.5) * images + np.float32(128), 0, 255).astype(np.uint8)


def rounded(images: np.ndarray) -> np.ndarray:
    """(N,...) model units -> uint8 round(255 clip(x / 2 + 1/2, 0, 1)), half to even.

    Differs from `encode` at half ties only. Computed in float64, where float32 values make none by rounding.

    Raises: ValueError naming the first image with a NaN.
    Source: the PNG writers of ADM (arXiv:2105.05233) and diffusers.
    """
    images = without_nan(images).astype(np.float64)
    return np.rint(255 * np.clip(images / 2 + 0.5, 0, 1)).astype(np.uint8)


QUANTISERS = {"edm": encode, "round": rounded}  # whose 8 bits: a metric's number belongs to one


def decode(stored: np.ndarray) -> np.ndarray:
    """uint8 u -> float32 u / 127.5 - 1, in [-1, 1]."""
    return np.asarray(stored, np.float32) / np.float32(127.5) - np.float32(1)


def without_nan(images: np.ndarray) -> np.ndarray:
    """The images as float32: bfloat16 would round differently, and NaN has no stored value.

    Raises: ValueError naming the first image with a NaN.
    """
    images = np.asarray(images).astype(np.float32)
    bad = np.isnan(images).reshape(len(images), -1).any(1)
    if bad.any():
        raise ValueError(f"image {int(np.argmax(bad))} has NaN values, which cannot be stored.")
    return images


class Rows:
    """Random access to stored images (N,...) and labels (N,) in memory, one at a time or many."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows `indices` (B,) as arrays {"image": (B,...), "label": (B,)}, in one gather."""
        return {"image": self.images[indices], "label": self.labels[indices]}


def fingerprint(*parts: np.ndarray | bytes) -> str:
    """sha256 over the dtypes, shapes and bytes of the parts, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        digest.update(part)
    return digest.hexdigest()


def outline(name: str, shape: tuple[int, ...], classes: int) -> Data:
    """A data set of which only shape and classes are known: enough to count what training costs."""
    return Data(
        name,
        train=(),
        reference={},
        classes=classes,
        encode=encode,
        decode=decode,
        fingerprint="",
        shape=shape,
    )
