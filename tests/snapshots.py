"""Files of torch and of the EDM code in miniature, written without either, and what hostile ones hold."""

import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from PIL import Image

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
KINDS = {"float32": "FloatStorage", "float64": "DoubleStorage"}
SOURCE = "import os\nos.system('touch {canary}')\n"


class Storage(NamedTuple):
    """A storage in a pickle, as a persistent id."""

    key: str
    numbers: np.ndarray


def foreign(module, name):
    """A function that a pickle calls by the name of another library; `named` makes the name known."""

    def function(*arguments):
        raise AssertionError(f"{module}.{name} was called")

    function.__module__, function.__qualname__ = module, name
    return function


RECORD = foreign("torch_utils.persistence", "_reconstruct_persistent_obj")
TENSOR = foreign("torch._utils", "_rebuild_tensor_v2")
PARAMETER = foreign("torch._utils", "_rebuild_parameter")
BYTES = foreign("torch.storage", "_load_from_bytes")
SCALAR = foreign("numpy.core.multiarray", "scalar")
DTYPE = foreign("numpy", "dtype")
STORAGES = {name: foreign("torch", name) for name in KINDS.values()}


class ModuleDict:
    """A plain container of torch."""

    def __init__(self, state):
        self.__dict__.update(state)


ModuleDict.__module__ = "torch.nn.modules.container"


class EasyDict(dict):
    """A dict of the EDM code."""


EasyDict.__module__ = "dnnlib.util"
SFD = {  # classes that SFD pickles by name
    name: type(name, (), {"__module__": "models.networks_edm"})
    for name in ("EDMPrecond", "SongUNet", "DhariwalUNet", "UNetBlock", "Linear", "Conv2d", "GroupNorm",
                 "PositionalEmbedding", "FourierEmbedding")
}  # fmt: skip


def script(name, **attributes):
    """A module of TorchScript, of a class that the archive's own code defines."""
    kind = type(name, (), {"__module__": "__torch__.nets"})
    made = kind()
    made.__dict__.update(attributes)
    return made


class Call:
    """What is pickled as a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self):
        return self.parts


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            kind = STORAGES[KINDS[str(value.numbers.dtype)]]
            return ("storage", kind, value.key, "cpu", value.numbers.size)
        return None


class LegacyPickler(pickle.Pickler):
    def persistent_id(self, value):
        found = Pickler.persistent_id(self, value)
        return found and (*found, None)


def dumped(value, protocol=2, kind=Pickler):
    """A pickle of values with foreign names."""
    functions = [RECORD, TENSOR, PARAMETER, BYTES, SCALAR, DTYPE, *STORAGES.values(), ModuleDict, EasyDict]
    functions += SFD.values()
    before = dict(sys.modules)
    made = {}
    for one in (*functions, *_classes(value)):
        parts = one.__module__.split(".")
        for depth in range(1, len(parts) + 1):
            made.setdefault(".".join(parts[:depth]), types.ModuleType(parts[depth - 1]))
        setattr(made[one.__module__], one.__qualname__, one)
    try:
        sys.modules.update(made)
        buffer = io.BytesIO()
        kind(buffer, protocol, fix_imports=False).dump(value)
        return buffer.getvalue()
    finally:
        sys.modules.clear()
        sys.modules.update(before)


def _classes(value):
    """The classes of a TorchScript module and those in it."""
    found = []
    if type(value).__module__.startswith("__torch__"):
        type(value).__qualname__ = type(value).__name__
        found.append(type(value))
        for inner in value.__dict__.values():
            found += _classes(inner)
    return found


def view(storage, array, parameter=True, **changes):
    """A tensor in a pickle."""
    shape = changes.get("shape", array.shape)
    strides = changes.get("strides", tuple(s // array.itemsize for s in array.strides))
    made = Call(TENSOR, storage, changes.get("offset", 0), shape, strides, False, OrderedDict())
    return Call(PARAMETER, made, True, OrderedDict()) if parameter else made


def legacy(value, storages):
    """The format before torch 1.6: of a state dict, or of one storage."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(one, 2) for one in (MAGIC, PROTOCOL, system)]
    parts += [dumped(value, 2, LegacyPickler), pickle.dumps([storage.key for storage in storages], 2)]
    parts += [struct.pack("<q", s.numbers.size) + s.numbers.tobytes() for s in storages]
    return b"".join(parts)


def stored(array, content=None, **changes):
    """A tensor of a snapshot, its storage a file in itself; `content` in the place of that."""
    array = np.asarray(array)
    storage = Storage("94031087546192", np.ascontiguousarray(array).ravel())
    content = legacy(storage, [storage]) if content is None else content
    return view(Call(BYTES, content), array, **changes)


def module(name, parameters=(), modules=(), canary="was_here", **attributes):
    """An object of the EDM code, with the source of its class, which would leave a canary."""
    state = {
        "training": False, "_parameters": OrderedDict(parameters), "_buffers": OrderedDict(),
        "_non_persistent_buffers_set": set(), "_modules": OrderedDict(modules), **attributes,
    }  # fmt: skip
    source = SOURCE.format(canary=canary)
    meta = dict(type="class", version=6, module_src=source, class_name=name, state=state)
    return Call(RECORD, meta)


def network(name, state, sfd=False, head=64, **attributes):
    """An object of the EDM code that holds a state dict, or one of SFD, whose classes are pickled by name.

    Args:
      state: arrays by dotted names.
      head: channels of an attention head.
    """
    groups, own = {}, {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if rest:
            groups.setdefault(first, {})[rest] = value
        else:
            own[first] = stored(value)
    modules = {
        first: network(_kind(first, inner), inner, sfd, head, **_attributes(inner, sfd, head))
        for first, inner in groups.items()
    }
    buffers = {key: one for key, one in own.items() if key in ("resample_filter", "freqs", "u")}
    parameters = {key: one for key, one in own.items() if key not in buffers}
    if name == "ModuleDict":
        return ModuleDict({"_modules": modules, "_parameters": {}, "_buffers": {}})
    if not sfd:
        return module(name, parameters, modules, _buffers=buffers, **attributes)
    made = SFD[name]()
    made.__dict__.update(
        training=False, _parameters=OrderedDict(parameters), _buffers=OrderedDict(buffers),
        _non_persistent_buffers_set=set(), _modules=OrderedDict(modules), **attributes,
    )  # fmt: skip
    return made


def _kind(part, inner):
    if part in ("enc", "dec"):
        return "ModuleDict"
    if "conv0.weight" in inner:
        return "UNetBlock"
    if "freqs" in inner:
        return "FourierEmbedding"
    if "norm" in part:
        return "GroupNorm"
    return "Linear" if np.ndim(inner.get("weight")) == 2 else "Conv2d"


def _attributes(inner, sfd, head):
    if "conv0.weight" not in inner:
        return {}
    channels = len(inner["conv1.weight"])
    if not sfd:
        return {"_init_kwargs": {"channels_per_head": head}}
    heads = channels // head if "qkv.weight" in inner else 0
    return {"dropout": 0.1, "skip_scale": number(0.5), "out_channels": channels, "num_heads": heads}


def number(value):
    """A number that numpy has saved."""
    kind = Call(DTYPE, "f8", False, True, state=(3, "<", None, None, None, -1, -1, 0))
    return Call(SCALAR, kind, np.float64(value).tobytes())


def tiny(canary="was_here", content=None):
    """A snapshot with a network of two modules and a container; `content` is its first storage's file."""
    one = module("Linear", {"weight": stored(WEIGHT, content), "bias": None}, canary=canary, skip=number(0.5))
    inner = {"_modules": {"one": one}, "_parameters": {}, "_buffers": {}, "training": False}
    container = ModuleDict(inner)
    two = module("Linear", {"bias": stored(BIAS)}, canary=canary)
    inside = {"enc": container, "map_layer0": two}
    model = module("SongUNet", (), inside, canary=canary, _init_kwargs={"a": [1, 2]})
    net = module("EDMPrecond", (), {"model": model}, canary=canary, sigma_data=0.5, sigma_max=float("inf"))
    loss = module("EDMLoss", canary=canary)
    return {"ema": net, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"n": 3}}


WEIGHT, BIAS = np.arange(12, dtype=np.float32).reshape(3, 4), np.float32([1, -2, 3])


def archive(value, storages, stem="net", scripted=False, compression=zipfile.ZIP_STORED):
    """The format since torch 1.6, or what torch.jit.save writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr(f"{stem}/data.pkl", dumped(value))
        if scripted:
            file.writestr(f"{stem}/constants.pkl", pickle.dumps((), 2))
            source = "raise RuntimeError('code is not run')\n" * 50
            file.writestr(f"{stem}/code/__torch__/nets.py", source, compress_type=zipfile.ZIP_DEFLATED)
        file.writestr(f"{stem}/byteorder", "little")
        for storage in storages:
            file.writestr(f"{stem}/data/{storage.key}", storage.numbers.tobytes())
        file.writestr(f"{stem}/version", "3\n")
    return buffer.getvalue()


class Attack:
    """A pickle that leaves a canary when it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def state():
    """A state dict of three tensors in two storages, and these."""
    storages = [Storage("0", WEIGHT.ravel()), Storage("1", BIAS)]
    named = {"a.weight": view(storages[0], WEIGHT), "a.bias": view(storages[1], BIAS, parameter=False)}
    named["b"] = view(storages[0], WEIGHT, shape=(4, 3), strides=(1, 4))
    return OrderedDict(named), storages


def image_set():
    """A data set of two images in EDM's form, by the names of its entries."""
    entries = {}
    for index in range(2):
        buffer = io.BytesIO()
        pixels = np.random.RandomState(index).randint(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        entries[f"00000/img{index:08d}.png"] = buffer.getvalue()
    labels = [[name, index] for index, name in enumerate(entries)]
    return entries | {"dataset.json": json.dumps({"labels": labels}).encode()}


def bombs(canary):
    """Hostile files by name: (suffix, content). A `.pkl` is a snapshot, `.pth` torch's, a `.zip` a data set."""
    attack = pickle.dumps(Attack(canary), 2)
    found = {
        "outer": (".pkl", pickle.dumps({"ema": Attack(canary)}, 4)),
        "outer_bare": (".pkl", attack),
        "inner": (".pkl", dumped(tiny(canary, attack), 4)),
        "inner_behind": (".pkl", dumped(tiny(canary, b"".join(_head()) + attack), 4)),
        "stacked_source": (".pkl", dumped({"ema": module("os.system", canary=canary)}, 4)),
        "claim_bytes": (".pkl", b"\x8e" + struct.pack("<Q", 1 << 40)),  # nine bytes
        "claim_text": (".pkl", b"\x8d" + struct.pack("<Q", 1 << 40)),
        "claim_frame": (".pkl", b"\x95" + struct.pack("<Q", 1 << 40)),
        "claim_memo": (".pkl", b"\x80\x02Nr\xff\xff\xff\x7f."),
        "claim_long": (".pkl", b"\x80\x02\x8b\xff\xff\xff\x7f"),
        "claim_array": (".pkl", b"\x96" + struct.pack("<Q", 1 << 40)),
        "key": (".pkl", b"\x80\x04}" + _doubled(60) + b"K\x01s."),  # whose hash takes for ever
        "pairs": (".pkl", b"\x80\x04ccollections\nOrderedDict\n(" + _doubled(60) + b"K\x01\x86\x85tR."),
        "copied_pairs": (".pkl", _copied(b"collections\nOrderedDict", b"M%b\x88\x86")),
        "colliding": (".pkl", b"\x80\x04}(" + b"".join(map(_multiple, range(1, 30_001))) + b"u."),
        "storage_again": (".pkl", _again(60_000)),
        "nested": (".pkl", b"\x80\x04}\x8c\x03ema" + _doubled(99) + b"s."),
        "nested_argument": (".pkl", _with_nested(canary)),
        "deep": (".pkl", b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b"."),
        "deep_lists": (".pkl", b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "many": (".pkl", b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l."),
        "many_sets": (".pkl", b"\x80\x04](" + b"\x8f" * 3_000_000 + b"e."),
        "shared": (".pkl", _shared()),
        "overlap": (".pkl", dumped({"ema": module("N", _views(400))}, 4)),
        "state_of_function": (".pkl", b"\x80\x04ctorch._utils\n_rebuild_parameter\nN}\x8c\x01aK\x01s\x86b."),
        "attribute": (".pkl", b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93."),
        "script_name": (".pkl", b"\x80\x04c__torch__.nets\nNet\n)\x81."),
        "sfd_attribute": (".pkl", b"\x80\x04cmodels.networks_edm\ntorch.hub.load\n."),
        "sfd_called": (".pkl", b"\x80\x04cmodels.networks_edm\nSongUNet\n\x8c\x01a\x85R."),
    }
    for size in (0, 1, 10, 100, 1000):
        found[f"cut_{size}"] = (".pkl", dumped(tiny(canary), 4)[:size])
    named, storages = state()
    good, first = archive(named, storages), storages[0]
    found |= {
        "zip_attack": (".pth", _zip({"net/data.pkl": attack})),
        "old_attack": (".pth", b"".join(_head()) + attack),
        "copied_set": (".pth", _zip({"net/data.pkl": _copied(b"builtins\nset", b"M%b")})),
        "copied_later": (".pth", _zip({"net/data.pkl": _copied(b"builtins\nset", b"M%b", later=True)})),
        "colliding_set": (".pth", _zip({"net/data.pkl": _colliding_set(30_000)})),
        "old_claim": (".pth", legacy(first, [first])[: -first.numbers.nbytes - 8] + b"\xff" * 8),
        "stride": (".pth", archive({"a": view(first, WEIGHT, shape=(10**6,) * 2, strides=(0, 0))}, storages)),
        "zip_absolute": (".pth", _zip({"/net/data.pkl": b"", "net/data.pkl": b"N."})),
        "zip_out": (".pth", _zip({"net/../../evil": b"", "net/data.pkl": b"N."})),
        "zip_back": (".pth", _zip({"net\\..\\evil": b"", "net/data.pkl": b"N."})),
        "zip_drive": (".pth", _zip({"c:/evil": b"", "net/data.pkl": b"N."})),
        "zip_bomb": (".pth", _zip({"net/data.pkl": b"\0" * (64 << 20)}, zipfile.ZIP_DEFLATED)),
        "zip_many": (".pth", _zip({f"net/{i}": b"" for i in range(30_000)})),
        "zip_overlap": (".pth", _overlapping()),
        "zip_size": (".pth", _resized(good)),
        "zip_cut": (".pth", good[:-30]),
    }
    images = image_set()
    name, other, _ = images
    header = images[name][:16] + struct.pack(">II", 50_000, 50_000) + images[name][24:29]
    huge = header + struct.pack(">I", zlib.crc32(header[12:29])) + images[name][33:]
    data = {
        "up": images | {"../up.png": b""},
        "absolute": images | {"/etc/up.png": b""},
        "pixels": images | {name: huge},
        "pickle": images | {name: attack},
        "json": images | {"dataset.json": b'{"labels": ' + b"[" * 100_000},
        "labels": images | {"dataset.json": b'{"labels": [' + b"[]," * 40_000 + b"[]]}"},
        "vectors": images | {"dataset.json": json.dumps({"labels": [[name, [1] * 9], [other, 1]]}).encode()},
        "class": images | {"dataset.json": json.dumps({"labels": [[name, 1 << 62], [other, 1]]}).encode()},
    }
    found |= {f"data_{key}": (".zip", _zip(entries)) for key, entries in data.items()}
    deflated = _zip(images | {name: b"\0" * (64 << 20)}, zipfile.ZIP_DEFLATED)
    overlapping = _overlapping().replace(b"net/data/", b"net/0.png")
    others = _zip({f"{i}.txt": b"" for i in range(3000)})
    return found | {
        "data_bomb": (".zip", deflated), "data_cut": (".zip", _zip(images)[:-30]),
        "data_overlap": (".zip", overlapping), "data_many": (".zip", others),
    }  # fmt: skip


def _head():
    return [pickle.dumps(one, 2) for one in (MAGIC, PROTOCOL, {"little_endian": True})]


def _doubled(depth):
    """A tuple of a tuple twice, and so on: short to write, endless to walk."""
    return b")\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(depth))


def _copied(name, entry, later=False, entries=30_000, calls=5_000):
    """Calls of a name on one list, whose entries are two bytes each; the list may grow within its tuple."""
    filled = b"(" + b"".join(entry % struct.pack("<H", i) for i in range(entries)) + b"e"
    listed = b"]\x94\x85\x94h\x00" + filled if later else b"]\x94" + filled + b"\x85\x94"
    return b"\x80\x04](" + listed + b"".join([b"c" + name + b"\nh\x01R"] * calls) + b"e."


def _multiple(index):
    """A key of the hash zero, and a value."""
    number = (index * (2**61 - 1)).to_bytes(12, "little")
    return b"\x8a\x0c" + number + b"N"


def _colliding_set(count):
    numbers = b"".join(_multiple(index)[:-1] for index in range(1, count + 1))
    return b"\x80\x02cbuiltins\nset\n](" + numbers + b"e\x85R."


def _again(count):
    """One storage, which is read again and again."""
    storage = Storage("1", np.ones(1, np.float32))
    content = legacy(storage, [storage])
    head = b"\x80\x04](ctorch.storage\n_load_from_bytes\n\x94B" + struct.pack("<I", len(content)) + content
    return head + b"\x85\x94" + b"h\x00h\x01R" * count + b"e."


def _with_nested(canary):
    """A network that was built with such a tuple as an argument."""
    value = ()
    for _ in range(60):
        value = (value, value)
    arguments = {"img_resolution": value, "in_channels": 3, "out_channels": 3}
    model = module("SongUNet", canary=canary, _init_kwargs=arguments)
    return dumped({"ema": module("EDMPrecond", (), {"model": model}, canary=canary, sigma_data=value)}, 4)


def _shared():
    """Modules that each hold the next one twice: as many names as 2^40."""
    net = module("N", {"w": stored(BIAS)})
    for _ in range(25):
        net = ModuleDict({"_modules": {"a": net, "b": net}})
    return dumped({"ema": module("P", (), {"model": net})}, 4)


def _views(count):
    """Many tensors that are one storage, turned."""
    array = np.ones((600, 1000), np.float32)
    storage = Storage("1", array.ravel())
    held = Call(BYTES, legacy(storage, [storage]))
    return {f"v{i}": view(held, array, shape=(1000, 600), strides=(1, 1000)) for i in range(count)}


def _zip(entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(zipfile.ZipInfo(name) if "\\" in name else name, content, compress_type=compression)
    return buffer.getvalue()


def _overlapping():
    """A thousand entries that are the same megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("net/data.pkl", b"N.")
        file.writestr("net/data/0", b"\0" * (1 << 20))
        first = file.getinfo("net/data/0")
        for i in range(1, 1000):
            other = zipfile.ZipInfo(f"net/data/{i}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(other, field, getattr(first, field))
            file.filelist.append(other)
            file.NameToInfo[other.filename] = other
    return buffer.getvalue()


def _resized(content):
    """An archive whose directory says that an entry has gigabytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        size = struct.pack("<II", *(2 * (file.getinfo("net/data/0").file_size,)))
    return content.replace(size, struct.pack("<II", 3 << 30, 3 << 30))
