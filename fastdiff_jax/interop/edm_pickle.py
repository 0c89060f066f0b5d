"""Network snapshots of the EDM code and its descendants (SiD, SFD), read without running what they ask for.

A snapshot is one pickle of a dict whose networks are objects that carry the source of their class along, to be
executed; here they become inert records of class name and attributes, and the source is dropped. Those of SFD
name the classes of its own code instead, and become the same. Each storage is a file of torch in itself, with
pickles of its own, which are checked again and may name even less.

    {"ema": record EDMPrecond {"_modules": {"model": record SongUNet {...}}, "sigma_data": 0.5, ...}, ...}
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff_jax import messages
from fastdiff_jax.interop import pickles, torch_state
from fastdiff_jax.interop.pickles import Call, Mapped, Name
from fastdiff_jax.interop.torch_state import STORAGES, Budget, Module, Storage

KEYS = ("ema", "G_ema", "model", "net", "G")  # of networks, most wanted first
STORAGE = pickles.Limits(opcodes=200, depth=8, text=1000, tuple=8)  # of the pickles inside a storage
PICKLES = 1 << 10  # what reading those of a storage costs, as so many of its bytes
SFD = "models.networks_edm"  # SFD's module, and its classes
SFD_CLASSES = (
    "EDMPrecond", "SongUNet", "DhariwalUNet", "UNetBlock", "Linear", "Conv2d", "GroupNorm",
    "PositionalEmbedding", "FourierEmbedding",
)  # fmt: skip
DTYPES = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"}  # of numbers that numpy has saved


class Record(Module):
    """An object of the EDM code: its class's name and its attributes."""

    def __new__(cls, name: str, state: dict):
        made = super().__new__(cls)
        made.name, made.state = name, state
        return made

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a second state for an object")


class Plain(Record):
    """An object that was pickled by its class's name, which a subclass has; its attributes come as a state."""

    title = ""

    def __new__(cls):
        return Record.__new__(cls, cls.title, {})

    __setstate__ = Module.__setstate__


class Dtype:
    """A numpy dtype by its code."""

    def __init__(self, code: str):
        self.dtype = np.dtype(code).newbyteorder("<")

    def __setstate__(self, state):
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|"):
            raise pickle.UnpicklingError("numbers in big-endian order")


class Array:
    """A tensor that has been read; `numbers` are its own, read-only."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: np.ndarray):
        self.numbers = numbers


class Loaded:
    """A storage that has been read."""

    __slots__ = ("numbers", "storage")

    def __init__(self, storage: Storage, numbers: np.ndarray):
        self.storage, self.numbers = storage, numbers


def record(meta) -> Record:
    """What torch_utils.persistence._reconstruct_persistent_obj is called with; the source is not looked at."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise pickle.UnpicklingError("an object of no class")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise pickle.UnpicklingError("an object without class name or attributes")
    return Record(name, state)


def dtype(code, *flags) -> Dtype:
    """What numpy.dtype is called with."""
    del flags
    if not isinstance(code, str) or code not in DTYPES:
        raise pickle.UnpicklingError(f"the numpy type {messages.shown(code)}")
    return Dtype(code)


def scalar(kind, content) -> float | int | bool:
    """What numpy's scalar is called with."""
    if not isinstance(kind, Dtype) or not isinstance(content, bytes) or len(content) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("a number of another length than its type")
    return np.frombuffer(content, kind.dtype)[0].item()


def vocabulary(budget: Budget) -> pickles.Vocabulary:
    """The names of a snapshot. A new one is added by hand, once it is known to be harmless; never a pattern."""

    def storage(content):
        if not isinstance(content, bytes):
            raise pickle.UnpicklingError("a storage that is no bytes")
        budget.spend(len(content) + PICKLES)  # one may be asked for again and again
        found, arrays = torch_state.sequence(content, STORAGES, STORAGE)
        if not isinstance(found, Storage):
            raise pickle.UnpicklingError("something else than a storage")
        return Loaded(found, arrays[found.key])

    def tensor(held, *place):
        if not isinstance(held, Loaded):
            raise pickle.UnpicklingError("a tensor of something else than a storage")
        what = torch_state.tensor(held.storage, *place)
        budget.spend(what.nbytes)
        return Array(torch_state.view(what, held.numbers))

    def parameter(data, *flags):
        del flags
        if not isinstance(data, Array):
            raise pickle.UnpicklingError("a parameter that is no tensor")
        return data

    return {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): Name(Call(record)),
        ("torch._utils", "_rebuild_parameter"): Name(Call(parameter)),
        ("torch._utils", "_rebuild_tensor_v2"): Name(Call(tensor)),
        ("torch.storage", "_load_from_bytes"): Name(Call(storage)),
        ("torch.nn.modules.container", "ModuleDict"): Name(Module, "record"),
        ("torch.nn.modules.container", "ModuleList"): Name(Module, "record"),
        ("collections", "OrderedDict"): Name(Mapped, "mapping"),
        ("dnnlib.util", "EasyDict"): Name(Mapped, "mapping"),
        ("numpy", "dtype"): Name(Call(dtype), "record"),
        ("numpy.core.multiarray", "scalar"): Name(Call(scalar)),
        ("numpy._core.multiarray", "scalar"): Name(Call(scalar)),
    } | {(SFD, name): Name(type(name, (Plain,), {"title": name}), "record") for name in SFD_CLASSES}


def read(path: Path) -> dict[str, Any]:
    """The dict of a snapshot: plain values, and networks as records; a network alone is under the key "".

    Raises: ValueError with one line if there is no such file, it is damaged, or it asks for anything that no
      snapshot needs; nothing of it has been run then.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r} to convert; name one on this machine.")
    content = path.read_bytes()
    try:
        found, end = pickles.load(content, vocabulary(Budget(len(content))))
        if end != len(content):
            raise pickle.UnpicklingError(f"{len(content) - end} bytes behind its end")
        found = {"": found} if isinstance(found, Record) else found
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise pickle.UnpicklingError("something else than a dict of networks")
    except pickles.DAMAGE as error:
        raise ValueError(
            f"{path.name} is no network snapshot that can be read, nothing of it was run: "
            f"{messages.line(error)}; use a file that the EDM code or one built on it has written."
        ) from None
    return dict(found)


def networks(snapshot: Mapping[str, Any]) -> list[str]:
    """The keys of a snapshot that hold networks."""
    return [
        key
        for key, value in snapshot.items()
        if isinstance(value, Record) and value.state.get("_modules")
    ]


def chosen(snapshot: Mapping[str, Any], key: str | None = None) -> tuple[str, Record]:
    """A network of a snapshot and its key: the one asked for, or the first of KEYS, or the only one.

    Raises: ValueError that says which there are, if that one is not.
    """
    known = networks(snapshot)
    usual = [one for one in KEYS if one in known]
    asked = key if key is not None else (usual or (known if len(known) == 1 else [None]))[0]
    if asked not in known:
        there = ", ".join(messages.shown(one) for one in known) or "none"
        also = ", ".join(messages.shown(one) for one in snapshot if one not in known) or "nothing"
        what = f"no network {asked!r}" if asked is not None else "no network of a usual name"
        raise ValueError(
            f"the snapshot has {what}; networks there: {there}; other entries: {also}; choose by --key."
        )
    return asked, snapshot[asked]


def flatten(network: Record) -> dict[str, np.ndarray]:
    """The state dict of a network: parameters and buffers by the dotted names of torch, None left out.

    Raises: ValueError if a module is held twice or too deep, or holds what is no tensor.
    """
    state, seen, distinct = {}, set(), {}

    def walk(module, path):
        if id(module) in seen or len(path) > torch_state.MODULES:
            raise pickle.UnpicklingError(f"the module {messages.shown('.'.join(path))}, held twice or too deep")
        seen.add(id(module))
        passing = module.state.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set | frozenset) else ()
        buffers = {name: one for name, one in _held(module, "_buffers", Array).items() if name not in passing}
        for name, one in {**_held(module, "_parameters", Array), **buffers}.items():
            state[torch_state.dotted((*path, name))] = one.numbers
            distinct[id(one)] = one.numbers.nbytes
        for name, one in _held(module, "_modules", Module).items():
            walk(one, (*path, name))

    try:
        walk(network, ())
        budget = Budget(sum(distinct.values()))
        for numbers in state.values():
            budget.spend(numbers.nbytes)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the snapshot has no state that can be read: {error}; use an undamaged file."
        ) from None
    return state


def _held(module, where, kind):
    """The entries of one of a module's dicts, but those that are None."""
    found = module.state.get(where) or {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise pickle.UnpicklingError(f"a module whose {where} are no dict")
    found = {name: value for name, value in found.items() if value is not None}
    for name, value in found.items():
        if not isinstance(value, kind):
            raise pickle.UnpicklingError(f"a {type(value).__name__} in {where} at {messages.shown(name)}")
    return found
