"""Weights that torch has saved, read without torch and without running what a file asks for.

Read are zip archives, TorchScript archives, of which the code is left alone, and the sequence of pickles that
torch wrote before version 1.6. Pickles are checked first, see `pickles`; they may name nothing but the few
functions of tensors, which are this module's own. No more is kept in memory than a few times the file.
"""

import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from fastdiff_jax import messages, zips
from fastdiff_jax.interop import pickles
from fastdiff_jax.interop.pickles import Call, Mapped, Name

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what an old file begins with
DTYPES = {
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
AXES = 16  # of a tensor, at most
MODULES = 32  # in each other, at most
NAME = 300  # characters of a tensor's name, at most
SCRIPT = "__torch__"  # what the names of TorchScript's classes begin with


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

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.storage.dtype.itemsize


class Kind:
    """A storage's class, by name: no more than its dtype."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a state for a storage's class")


class Module:
    """A module: its class is left alone, its attributes are `state`."""

    def __new__(cls):
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module whose state is no dict")
        self.state = state


def tensor(storage, offset, shape, strides, *flags) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 is called with; gradient flags and hooks are not read."""
    del flags
    sizes = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= AXES
    if not isinstance(storage, Storage) or not sizes:
        raise pickle.UnpicklingError("a tensor of something else than a storage")
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise pickle.UnpicklingError("a tensor of something else than a storage")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # As many values as there are numbers at most: a stride of zero could ask for any memory.
    if math.prod(shape) > storage.count or (math.prod(shape) and last >= storage.count):
        raise pickle.UnpicklingError(f"a tensor {shape} beyond its storage of {storage.count}")
    return Tensor(storage, offset, shape, strides)


def parameter(data, *flags) -> Tensor:
    """What torch._utils._rebuild_parameter is called with."""
    del flags
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter that is no tensor")
    return data


def entries(items=()) -> frozenset:
    """What a set is called with: a list, of which `pickles.scan` has counted the entries."""
    if type(items) not in (list, tuple):
        raise pickle.UnpicklingError(f"a set of a {type(items).__name__}")
    for item in items:
        pickles.check_key(item)
    return frozenset(items)


def tagged(value, kind) -> object:
    """What torch.jit._pickle.restore_type_tag is called with."""
    del kind
    return value


STORAGES = {
    ("collections", "OrderedDict"): Name(Mapped, "mapping"),
    **{
        (home, name): Name(Kind(dtype))
        for home in ("torch", "torch.cuda")
        for name, dtype in DTYPES.items()
    },
}
TENSORS = {
    ("torch._utils", "_rebuild_tensor"): Name(Call(tensor)),
    ("torch._utils", "_rebuild_tensor_v2"): Name(Call(tensor)),
    ("torch._utils", "_rebuild_parameter"): Name(Call(parameter)),
}
STATES = STORAGES | TENSORS | {(home, "set"): Name(Call(entries)) for home in ("builtins", "__builtin__")}


class Scripted(dict):
    """The vocabulary of TorchScript: every class of an archive's own code stands for the inert `Module`."""

    def __missing__(self, key):
        if key[0].split(".")[0] != SCRIPT:
            raise KeyError(key)
        return Name(Module, "record")


SCRIPTS = Scripted(
    # No sets: what calls give back, such as `tagged`, has no entries that could be counted.
    STORAGES | TENSORS | {
        ("torch.jit._pickle", "restore_type_tag"): Name(Call(tagged)),
        **{
            ("torch.jit._pickle", f"build_{kind}list"): Name(Call(lambda values: values))
            for kind in ("int", "double", "bool", "tensor")
        },
    }
)  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, from a .safetensors file or one of torch, in their own dtypes.

    Raises: ValueError if there is no such file, it is damaged, holds anything but named tensors, or its pickle
      names anything that a state dict does not need.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r} to convert; name one on this machine.")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load(path.read_bytes())
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path.name} is no safetensors file: {messages.line(error)}.") from None
        except KeyError as error:  # of a type that numpy has not
            raise ValueError(
                f"{path.name} holds numbers of type {messages.shown(error.args[0])}; save float32."
            ) from None
    try:
        return _zipped(path) if zipfile.is_zipfile(path) else _old(path.read_bytes())
    except pickles.DAMAGE as error:
        raise ValueError(
            f"{path.name} is no state dict of torch that can be read, nothing of it was run: "
            f"{messages.line(error)}; save the model's state_dict()."
        ) from None


class Storages:
    """The storages that a pickle refers to, by key."""

    def __init__(self):
        self.found: dict[str, Storage] = {}

    def __call__(self, pid) -> Storage:
        """What a persistent id stands for."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("a reference to something else than a storage")
        _, kind, key, _, count = pid[:5]  # the fourth is the device that it was on
        if pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("a view of a storage")
        if not (isinstance(kind, Kind) and isinstance(key, str) and type(count) is int and count >= 0):
            raise pickle.UnpicklingError("a storage without class, key or size")
        storage = Storage(key, kind.dtype, count)
        if self.found.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"two storages of the key '{messages.shown(key)}'")
        return storage


def sequence(
    content: bytes, names: pickles.Vocabulary, limits: pickles.Limits = pickles.USUAL
) -> tuple[object, dict[str, np.ndarray]]:
    """Value and storages of a file in the format before torch 1.6.

    That is magic number, protocol, system, the value and the storages' keys, then size and numbers of each.

    Raises: one of pickles.DAMAGE.
    """
    storages, place, values = Storages(), 0, []
    for vocabulary, persistent in (({}, None), ({}, None), ({}, None), (names, storages), ({}, None)):
        value, place = pickles.load(content, vocabulary, persistent, place, limits)
        values.append(value)
        if values[:1] != [MAGIC] or values[1:2] not in ([], [PROTOCOL]):
            raise pickle.UnpicklingError("another beginning than torch writes")
    _, _, system, value, keys = values
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise pickle.UnpicklingError("numbers in big-endian order")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("storages without keys")
    if sorted(keys) != sorted(storages.found):
        raise pickle.UnpicklingError("other storages than its tensors need")
    arrays = {}
    for key in keys:
        storage = storages.found[key]
        (count,) = struct.unpack_from("<q", content, place)
        if count != storage.count or count * storage.dtype.itemsize > len(content) - place - 8:
            raise pickle.UnpicklingError(f"no {storage.count} numbers for a storage")
        arrays[key] = np.frombuffer(content, storage.dtype, count, place + 8)
        place += 8 + count * storage.dtype.itemsize
    return value, arrays


class Budget:
    """How many bytes of storages and tensors a file may ask for: a few times its own, as they can be shared."""

    def __init__(self, size: int):
        self._size, self._left = size, 4 * size + (1 << 20)

    def spend(self, count: int) -> None:
        """Raises UnpicklingError once more has been asked for than there is."""
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError(f"storages and tensors of many times its {self._size} bytes")


def view(what: Tensor, numbers: np.ndarray) -> np.ndarray:
    """The array that a tensor describes; read-only, and a copy only where strides ask for one."""
    storage = what.storage
    if numbers.nbytes != storage.count * storage.dtype.itemsize:
        raise pickle.UnpicklingError(f"{numbers.nbytes} bytes for the {storage.count} numbers of a storage")
    strides = tuple(stride * storage.dtype.itemsize for stride in what.strides)
    flat = numbers.view(storage.dtype)[what.offset :]
    made = np.lib.stride_tricks.as_strided(flat, what.shape, strides, writeable=False)
    return made if made.flags.c_contiguous else made.copy()


def _arrays(tensors: Mapping[str, Tensor], size: int, numbers: Callable[[str], np.ndarray]):
    """The arrays of named tensors in a file of `size` bytes, whose storages are `numbers` by their keys."""
    budget, read = Budget(size), {}
    for what in tensors.values():
        budget.spend(what.nbytes)
    for what in tensors.values():
        if what.storage.key not in read:
            read[what.storage.key] = numbers(what.storage.key)
    return {name: view(what, read[what.storage.key]) for name, what in tensors.items()}


def _named(state) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise pickle.UnpicklingError("something else than tensors by name")
    return state


def _old(content):
    state, storages = sequence(content, STATES)
    return _arrays(_named(state), len(content), storages.__getitem__)


def _zipped(path):
    """Of an archive: <stem>/data.pkl, and every storage as <stem>/data/<key>."""
    with zips.opened(path) as archive:
        names = set(archive.namelist())
        found = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise pickle.UnpicklingError("no data.pkl, or several")
        stem = found[0].removesuffix("data.pkl")
        if f"{stem}byteorder" in names and stored(archive, f"{stem}byteorder") != b"little":
            raise pickle.UnpicklingError("numbers in big-endian order")
        scripted = f"{stem}constants.pkl" in names  # torch.jit.save writes it, torch.save does not
        vocabulary = SCRIPTS if scripted else STATES
        state, _ = pickles.load(stored(archive, found[0]), vocabulary, Storages())
        tensors = attributes(state) if scripted else _named(state)

        def numbers(key):
            if f"{stem}data/{key}" not in names:
                raise pickle.UnpicklingError(f"no numbers of the storage '{messages.shown(key)}'")
            return np.frombuffer(stored(archive, f"{stem}data/{key}"), np.uint8)

        return _arrays(tensors, path.stat().st_size, numbers)


def stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry that is not compressed, as torch's data are not; so it is no longer than the archive."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise zipfile.BadZipFile(f"the compressed entry {messages.shown(name)}, which torch does not write")
    return archive.read(entry)


def attributes(script: object) -> dict[str, Tensor]:
    """The tensors of a TorchScript module by name, "mixed.conv.weight"; other attributes are left out.

    Raises: UnpicklingError if it is no module, or one is held twice or too deep.
    """
    if not isinstance(script, Module):
        raise pickle.UnpicklingError("something else than a module")
    tensors, seen = {}, set()

    def walk(module, path):
        if id(module) in seen or len(path) > MODULES:
            raise pickle.UnpicklingError(f"the module {messages.shown('.'.join(path))}, held twice or too deep")
        seen.add(id(module))
        for name, value in module.state.items():
            if isinstance(value, Module):
                walk(value, (*path, name))
            elif isinstance(value, Tensor):
                tensors[dotted((*path, name))] = value

    walk(script, ())
    return tensors


def dotted(path: tuple[str, ...]) -> str:
    """A tensor's name. Raises: UnpicklingError if it is too long: a short one may be repeated at no cost."""
    if sum(map(len, path)) + len(path) > NAME:
        raise pickle.UnpicklingError(f"a name of more than {NAME} characters")
    return ".".join(path)
