"""Pickles of strangers: every opcode is checked before the first is run, and then only listed names are known.

`scan` walks the opcodes with a stack of kinds instead of values. It refuses what no saved network needs: other
opcodes, names that are not in the vocabulary, calls of anything but these, lengths beyond the file, memo slots
beyond the opcodes so far, keys that are no plain values (the hash of nested tuples can take for ever) or whole
numbers beyond 32 bits (whose hashes can be made to collide), calls that copy one list again and again, deep
nesting. Only then does `load` run the pickle, with an unpickler that knows the same names.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastdiff_jax import messages

# What a damaged pickle may end in, besides what is refused here.
DAMAGE = (
    pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError, OverflowError,
    ValueError, RecursionError, MemoryError, NotImplementedError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
PLAIN = (str, bytes, int, float, bool, type(None))  # types of keys


class Name(NamedTuple):
    """What stands for a name of another library in a pickle."""

    value: Any  # of this package, found in its place
    makes: str = "sealed"  # what a call of it gives: "sealed", or "mapping" and "record", which take a state


Vocabulary = Mapping[tuple[str, str], Name]  # by module and name


class Limits(NamedTuple):
    """How much a pickle may ask for; a released network takes 60 thousand opcodes and 20 levels."""

    opcodes: int = 500_000  # one byte can make an object of 200; entries that calls are handed, as many
    depth: int = 100  # of containers in each other
    text: int = 1 << 22  # bytes of one text; some files hold their source
    tuple: int = 10_000  # entries of one


class Restricted(pickle.Unpickler):
    """Loads plain values and, of names, those of a vocabulary only."""

    def __init__(self, content: bytes, names: Vocabulary, persistent: Callable[[Any], Any] | None = None):
        # Without fix_imports, which renames: the names are those that the scan has seen.
        super().__init__(io.BytesIO(content), fix_imports=False)
        self._names, self._persistent = names, persistent

    def find_class(self, module, name):
        return named(self._names, module, name).value

    def persistent_load(self, pid):
        if self._persistent is None:
            raise pickle.UnpicklingError("a reference to something outside")
        return self._persistent(pid)


USUAL = Limits()


def load(
    content: bytes, names: Vocabulary, persistent: Callable | None = None, start=0, limits: Limits = USUAL
) -> tuple[Any, int]:
    """The value of the pickle that begins at `start`, and where it ends.

    Args:
      persistent: gives the value of a persistent id; None if there may be none.
    Raises: one of DAMAGE, before anything is run if the opcodes show it.
    """
    end = scan(content, names, persistent is not None, start, limits)
    whole = start == 0 and end == len(content)
    return Restricted(content if whole else content[start:end], names, persistent).load(), end


def named(names: Vocabulary, module: str, name: str) -> Name:
    """An entry of the vocabulary. Raises: UnpicklingError that shows what was asked for."""
    try:
        return names[module, name]
    except KeyError:
        asked = f"{messages.shown(module)}.{messages.shown(name)}"
        raise pickle.UnpicklingError(f"the name {asked}, which no state of a network needs") from None


def check_key(key: Any) -> None:
    """Raises UnpicklingError for a key of a dict or a set that is no plain value, or a long whole number."""
    if type(key) not in PLAIN:
        raise pickle.UnpicklingError(f"a key of the type {type(key).__name__}")
    if type(key) is int and key.bit_length() > 32:
        raise pickle.UnpicklingError("a key that is a whole number of more than 32 bits")


class Mapped(dict):
    """A dict of another library: ordered, or with attributes. What was saved beside it is dropped."""

    def __init__(self):  # entries come one by one, as they cost: a list of pairs could be handed over again
        super().__init__()

    def __setstate__(self, state):
        del state


class Call:
    """A function that a pickle may call."""

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a state for a function")


def scan(
    content: bytes, names: Vocabulary, persistent: bool = False, start: int = 0, limits: Limits = USUAL
) -> int:
    """Where the pickle that begins at `start` ends; runs nothing.

    Raises: UnpicklingError for what no saved network needs, see the module.
    """
    return _Scan(content, names, persistent, start, limits).run()


class _Item:
    """What is on the stack: its kind, how deep it nests, and what it is.

    `value`: of texts and names these, of tuples the items in them. `size`: entries of a container; it grows.
    """

    __slots__ = ("depth", "kind", "size", "value")

    def __init__(self, kind, depth=0, value=None, size=0):
        self.kind, self.depth, self.value, self.size = kind, depth, value, size


# Kinds of items: text, plain, long, bytes, tuple, list, dict, set, name, and what calls of names make. Opcodes
# by what they do, with the bytes that follow: a value, or how long it is.
_CONSTANTS = {"NONE": 0, "NEWTRUE": 0, "NEWFALSE": 0, "BININT1": 1, "BININT2": 2, "BININT": 4, "BINFLOAT": 8}
_TEXTS = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}
_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8}
_EMPTY = {"EMPTY_TUPLE": "tuple", "EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class _Scan:
    def __init__(self, content, names, persistent, start, limits):
        self.content, self.names, self.persistent, self.limits = content, names, persistent, limits
        self.place, self.count, self.handed = start, 0, 0
        self.stack, self.marks, self.memo = [], [], {}

    def run(self):
        first = self.place
        while True:
            at = self.place
            code = self.number(1)
            name = _OPCODES.get(code, f"{code:#x}")
            self.count += 1
            if self.count > self.limits.opcodes:
                raise self.refused(f"more than {self.limits.opcodes} opcodes")
            if name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise self.refused("a stack that is not one value at its end")
                return self.place
            if name == "PROTO":
                if at != first or not 2 <= self.number(1) <= 5:
                    raise self.refused("another protocol than 2 to 5")
            elif not self.pushed(name) and not self.composed(name):
                raise self.refused(f"the opcode {name}, which no state of a network needs")

    def pushed(self, name):
        """Opcodes that read the content: values of their own, and the memo."""
        if name in _CONSTANTS:
            self.skip(_CONSTANTS[name])
            self.push("plain")
        elif name == "LONG1":
            size = self.number(1)
            if size > 16:
                raise self.refused(f"a whole number of {size} bytes")
            self.skip(size)
            self.push("long")
        elif name in _TEXTS:
            size = self.number(_TEXTS[name])
            text = self.skip(size)
            if size > self.limits.text:
                raise self.refused(f"a text of {size} bytes")
            self.push("text", value=str(self.content[text : text + size], "utf-8") if size < 256 else None)
        elif name in _BYTES:
            self.skip(self.number(_BYTES[name]))
            self.push("bytes")
        elif name == "FRAME":
            size, here = self.number(8), self.place
            self.skip(size)
            self.place = here
        elif name == "GLOBAL":
            module, attribute = self.line(), self.line()
            self.push("name", value=named(self.names, module, attribute))
        elif name in ("BINGET", "LONG_BINGET"):
            slot = self.number(1 if name == "BINGET" else 4)
            if slot not in self.memo:
                raise self.refused(f"the memo slot {slot}, which is empty")
            self.stack.append(self.memo[slot])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(self.memo) if name == "MEMOIZE" else self.number(1 if name == "BINPUT" else 4)
            if slot > self.count:
                raise self.refused(f"the memo slot {slot} after {self.count} opcodes")
            self.memo[slot] = self.top()
        else:
            return False
        return True

    def composed(self, name):
        """Opcodes that take their operands from the stack."""
        if name == "MARK":
            self.marks.append(len(self.stack))
            if len(self.marks) > self.limits.depth:
                raise self.refused(f"more than {self.limits.depth} open marks")
        elif name in _EMPTY:
            self.push(_EMPTY[name], value=())
        elif name in _TUPLES:
            self.tuple(self.pop(_TUPLES[name]))
        elif name == "TUPLE":
            self.tuple(self.pop_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.pop_mark()
            self.grow(self.top("list"), items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.pop(2) if name == "SETITEM" else self.pop_mark()
            if len(items) % 2:
                raise self.refused("a key without a value")
            self.keys(items[::2])
            self.grow(self.top("dict", "mapping"), items[1::2])
        elif name == "ADDITEMS":
            items = self.pop_mark()
            self.keys(items)
            self.top("set").size += len(items)
        elif name == "STACK_GLOBAL":
            module, attribute = self.pop(2, "text")
            self.push("name", value=named(self.names, module.value, attribute.value))
        elif name == "BINPERSID" and self.persistent:
            self.pop(1, "tuple")
            self.push("sealed")
        elif name in ("REDUCE", "NEWOBJ"):
            (arguments,) = self.pop(1, "tuple")
            (called,) = self.pop(1, "name")
            if name == "NEWOBJ" and (arguments.value or called.value.makes == "sealed"):
                raise self.refused("a new object of something else than a container")
            if called.value.makes == "mapping" and arguments.value:
                raise self.refused("a mapping that is made with arguments")
            # At the call, as a list may have grown in its tuple; once for each, as each may copy it.
            self.handed += arguments.size + sum(item.size for item in arguments.value)
            if self.handed > self.limits.opcodes:
                raise self.refused(f"calls with more than {self.limits.opcodes} entries in their arguments")
            self.push(called.value.makes, self.deeper([arguments]))
        elif name == "BUILD":
            self.pop(1, "dict", "mapping", "tuple")
            self.top("mapping", "record")
        else:
            return False
        return True

    def push(self, kind, depth=0, value=None, size=0):
        self.stack.append(_Item(kind, depth, value, size))

    def tuple(self, items):
        if len(items) > self.limits.tuple:
            raise self.refused(f"a tuple of {len(items)}")
        self.push("tuple", self.deeper(items), items, len(items))

    def grow(self, container, items):
        container.depth = max(container.depth, self.deeper(items))
        container.size += len(items)

    def deeper(self, items):
        depth = 1 + max((item.depth for item in items), default=0)
        if depth > self.limits.depth:
            raise self.refused(f"containers more than {self.limits.depth} deep")
        return depth

    def keys(self, items):
        for item in items:
            if item.kind not in ("text", "plain", "bytes"):
                long = " whole number of more than 32 bits" if item.kind == "long" else f" {item.kind}"
                raise self.refused(f"a key that is a{long}")

    def top(self, *kinds):
        """The item on top, of one of the kinds."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.refused("an empty stack")
        item = self.stack[-1]
        if kinds and item.kind not in kinds:
            raise self.refused(f"a {item.kind} in the place of a {kinds[0]}")
        return item

    def pop(self, count, *kinds):
        """The top items, the last one on top, each of one of the kinds."""
        items = []
        for _ in range(count):
            items.append(self.top(*kinds))
            self.stack.pop()
        return items[::-1]

    def pop_mark(self):
        if not self.marks:
            raise self.refused("a mark that was not set")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def number(self, size):
        """An unsigned number of `size` bytes."""
        at = self.skip(size)
        return int.from_bytes(self.content[at : at + size], "little")

    def line(self):
        end = self.content.find(b"\n", self.place, self.place + 256)
        if end < 0:
            raise self.refused("a name without an end")
        text = str(self.content[self.place : end], "utf-8")
        self.place = end + 1
        return text

    def skip(self, size):
        """Where the next `size` bytes begin; they are passed over."""
        at = self.place
        if size > len(self.content) - at:
            raise self.refused(f"{size} bytes where {len(self.content) - at} are left")
        self.place = at + size
        return at

    def refused(self, what):
        return pickle.UnpicklingError(f"{what} (before byte {self.place})")
