"""Arrays of an npz of strangers: what an entry claims is looked at before room is made for it."""

import io
import math
import tokenize
from collections.abc import Iterable, Mapping

import numpy as np

from fastdiff_jax import messages, zips

LIMITS = zips.Limits(entries=100)
NUMBERS = "fiu"  # kinds of dtypes that are real numbers
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What a damaged file may end in.
DAMAGE = (
    *zips.DAMAGE, tokenize.TokenError, ValueError, TypeError, RecursionError, MemoryError, SyntaxError,
)  # fmt: skip


def read(
    content: bytes, kinds: Mapping[str, str], most: int, absent: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays of an npz by name; other entries are left alone.

    Args:
      kinds: by name, the kinds of numpy dtypes that it may have: NUMBERS, or "U" for a text.
      most: bytes of one array.
      absent: names that need not be there.
    Raises: ValueError in one line if it is damaged, or an array is missing, of another kind or larger.
    """
    try:
        with zips.opened(io.BytesIO(content), LIMITS) as archive:
            there = set(archive.namelist())
            return {
                name: _array(archive, name, kind, most)
                for name, kind in kinds.items()
                if name not in absent or f"{name}.npy" in there
            }
    except DAMAGE as error:
        raise ValueError(messages.line(error)) from None


def _array(archive, name, kind, most):
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{name} is of the npy version {version}")
        shape, _, dtype = HEADERS[version](file)
        begin = file.tell()
    if dtype.kind not in kind or dtype.hasobject:
        raise ValueError(f"{name} is of the type {dtype}")
    size = math.prod(shape) * dtype.itemsize
    if size > most or size != info.file_size - begin:
        raise ValueError(f"{name} claims {size:,} bytes, where {info.file_size - begin:,} are there")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
