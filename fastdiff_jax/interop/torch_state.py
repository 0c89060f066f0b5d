"""State dicts that torch has saved, read without torch and without running what a pickle asks for.

Both formats are read: zip archives, and the sequence of pickles that torch wrote before version 1.6. A pickle
may name nothing but the few functions of tensors, which are this module's own; any other name is refused.
"""

import io
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what an old file begins with
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What a damaged pickle may end in, besides what is refused here.
DAMAGE = (
    pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError, OverflowError,
    ValueError, RecursionError, MemoryError, NotImplementedError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


class Storage(NamedTuple):
    """A stretch of one file's numbers, by its key."""

    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    """A view of a storage, as the pickle describes it; read once all storages are known."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Names(dict):
    """An ordered dict of torch; attributes that were saved with it are dropped."""

    def __setstate__(self, state):
        del state


class Kind:
    """A storage's class, by name: no more than its dtype."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a state for a storage's class")


class Rebuild:
    """A function of torch that a pickle may call."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a state for a function")


def tensor(storage, offset, shape, strides, *flags) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 is called with; gradient flags and hooks are not read."""
    del flags
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor of something else than a storage")
    shape, strides = tuple(shape), tuple(strides)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # As many values as there are numbers at most: a stride of zero could ask for any memory.
    if math.prod(shape) > storage.count or (math.prod(shape) and last >= storage.count):
        raise pickle.UnpicklingError(f"a tensor {shape} beyond its storage of {storage.count}")
    return Tensor(storage, offset, shape, strides)


def parameter(data, *flags) -> Tensor:
    """What torch._utils._rebuild_parameter is called with."""
    del flags
    return data


ALLOWED = {
    ("collections", "OrderedDict"): Names,
    ("torch._utils", "_rebuild_tensor"): Rebuild(tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Rebuild(tensor),
    ("torch._utils", "_rebuild_parameter"): Rebuild(parameter),
    **{(home, name): Kind(STORAGES[name]) for home in ("torch", "torch.cuda") for name in STORAGES},
}


class Restricted(pickle.Unpickler):
    """Loads plain values, and of names those of ALLOWED only."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the name {module}.{name}, which no state dict needs")
        return ALLOWED[module, name]

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("a reference to something else than a storage")
        _, kind, key, _, count = pid[:5]  # the fourth is the device that it was on
        if pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("a view of a storage")
        if not (isinstance(kind, Kind) and isinstance(key, str) and type(count) is int and count >= 0):
            raise pickle.UnpicklingError("a storage without class, key or size")
        return Storage(key, kind.dtype, count)


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, from a .safetensors file or one of torch, in their own dtypes.

    Raises: ValueError if there is no such file, it is damaged, holds anything but named tensors, or its pickle
      names anything that a state dict does not need.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r} to convert; name one on this machine.")
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load(content)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path.name} is no safetensors file: {error}.") from None
    try:
        state, storages = (_zipped if zipfile.is_zipfile(io.BytesIO(content)) else _sequence)(content)
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
        ):
            raise pickle.UnpicklingError("something else than tensors by name")
        return {name: _array(value, storages) for name, value in state.items()}
    except DAMAGE as error:
        what = str(error) or type(error).__name__
        raise ValueError(
            f"{path.name} is no state dict of torch that can be read, nothing of it was run: {what}; save the "
            "model's state_dict()."
        ) from None


def _zipped(content):
    """Of an archive: <stem>/data.pkl, and every storage as <stem>/data/<key>."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise pickle.UnpicklingError("compressed entries, which torch does not write")
        found = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise pickle.UnpicklingError("no data.pkl, or several")
        stem = found[0].removesuffix("data.pkl")
        if f"{stem}byteorder" in entries and archive.read(f"{stem}byteorder") != b"little":
            raise pickle.UnpicklingError("numbers in big-endian order")
        state = Restricted(io.BytesIO(archive.read(found[0])), encoding="utf-8").load()
        prefix = f"{stem}data/"
        return state, {n[len(prefix) :]: archive.read(n) for n in entries if n.startswith(prefix)}


def _sequence(content):
    """Of an old file: magic number, protocol, system, state and keys, then size and numbers of each storage."""
    stream = io.BytesIO(content)
    load = lambda: Restricted(stream, encoding="utf-8").load()
    if load() != MAGIC or load() != PROTOCOL:
        raise pickle.UnpicklingError("another beginning than torch writes")
    if not load().get("little_endian", False):
        raise pickle.UnpicklingError("numbers in big-endian order")
    state, keys, storages = load(), load(), {}
    sizes = {value.storage.key: value.storage.dtype.itemsize for value in state.values()}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        wanted = count * sizes[key]
        storages[key] = stream.read(wanted) if 0 <= wanted <= len(content) else b""
    return state, storages


def _array(view: Tensor, storages) -> np.ndarray:
    storage, held = view.storage, storages[view.storage.key]
    if len(held) != storage.count * storage.dtype.itemsize:
        raise pickle.UnpicklingError(f"{len(held)} bytes for the {storage.count} numbers of a storage")
    flat = np.frombuffer(held, storage.dtype)[view.offset :]
    strides = tuple(stride * storage.dtype.itemsize for stride in view.strides)
    return np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False).copy()
