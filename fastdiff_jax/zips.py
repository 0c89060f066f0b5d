"""Zips of strangers: their list of entries is measured before it is read, and checked before an entry is.

Nothing here unpacks to disk. How much is too much is a caller's `Limits`; what is wrong in any zip is refused
for all: names that point out of it or hide another, entries that overlap, are encrypted, or are there twice.
"""

import contextlib
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

# What a damaged zip may end in, when it is opened and when an entry is read.
DAMAGE = (
    zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError,
    UnicodeError, struct.error, zlib.error,
)  # fmt: skip
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
END, END64, LOCATOR, SIGNATURE = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
END_BYTES, END64_BYTES, LOCATOR_BYTES = 22, 56, 20
COMMENT = 1 << 16  # bytes of the longest, behind the end of the list
LISTED, AHEAD = 46, 30  # bytes of an entry in the list and ahead of its content, besides its name in both
USUALLY = 128  # bytes of an entry in the list, with its name
DRIVE = re.compile(r"[A-Za-z]:")
CHUNK = 1 << 20  # bytes of a list that are searched at a time
IN_ZIP64 = 0xFFFFFFFF  # a length that is written elsewhere
CONTROLS = re.compile(r"[\x00-\x1f]")


class Limits(NamedTuple):
    """What a zip may hold; torch's, of a large network, have two thousand entries."""

    entries: int = 20_000
    ratio: int = 200  # of an entry's size to its compressed size
    small: int = 1 << 20  # bytes that an entry may have beyond the ratio
    name: int = 1000  # characters


USUAL = Limits()


class Damaged(zipfile.BadZipFile):
    """What is no zip, or not whole: another copy may be sound, while other refusals are of the content."""


def opened(file: Path | BinaryIO, limits: Limits = USUAL) -> zipfile.ZipFile:
    """The zip at a path or in a file, once its list of entries has been checked; the caller closes it.

    Raises: Damaged; zipfile.BadZipFile as `check`; both in one line. A list that is longer than
      `limits.entries` need is refused before an object of every entry is made.
    """
    with open(file, "rb") if isinstance(file, Path) else contextlib.nullcontext(file) as content:
        size = content.seek(0, os.SEEK_END)
        _check_list(content, size, limits)
    try:
        archive = zipfile.ZipFile(file)
    except DAMAGE as error:
        raise Damaged(f"it is damaged or no zip ({line(error)})") from None
    try:
        check(archive.infolist(), size, limits)
    except zipfile.BadZipFile:
        archive.close()
        raise
    return archive


def check(entries: list[zipfile.ZipInfo], size: int, limits: Limits = USUAL) -> None:
    """Checks all entries of a zip, as `zipfile` lists them; `size` is the zip's in bytes.

    Raises: zipfile.BadZipFile, in one line, for names that are empty, long, have control characters, are not
      what the zip says, or are absolute or lead out; for what is encrypted, or neither stored nor deflated;
      for more entries, bytes or ratios than `limits`; for a name that is there twice; for entries that
      overlap or lie outside the file by what the list says of them, headers and the list itself included.
    """
    if len(entries) > limits.entries:
        raise zipfile.BadZipFile(f"it has more than {limits.entries:,} entries")
    names, listed, end = set(), END_BYTES, 0
    for entry in entries:
        name = entry.orig_filename
        problem = _problem(entry, limits) or ("is there twice" if name in names else None)
        if problem:
            raise zipfile.BadZipFile(f"its entry '{shown(name)}' {problem}")
        names.add(name)
        listed += LISTED + len(name)
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            what = "ahead of the file" if entry.header_offset < 0 else "within another, so they overlap"
            raise zipfile.BadZipFile(f"its entry '{shown(entry.orig_filename)}' begins {what}")
        end = entry.header_offset + AHEAD + len(entry.orig_filename) + entry.compress_size
    if end > size - listed:
        raise zipfile.BadZipFile("its entries claim more bytes than the file has, so they overlap")


def shown(text: Any, limit: int = 80) -> str:
    """A value of a file as part of a message: short, and without characters that a terminal obeys.

    Of a container only the type: to write out nested tuples can take for ever.
    """
    if isinstance(text, str):
        return ascii(text[:limit])[1:-1] + "..." * (len(text) > limit)
    return ascii(text) if type(text) in (int, float, bool, type(None)) else f"a {type(text).__name__}"


def line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def controls(name: str) -> bool:
    """Whether a name has control characters."""
    return CONTROLS.search(name) is not None


def _problem(entry: zipfile.ZipInfo, limits: Limits) -> str | None:
    """What speaks against one entry, or None."""
    name = entry.orig_filename
    parts = name.replace("\\", "/").split("/")
    if not name or len(name) > limits.name:
        return "has no usable name"
    if controls(name):
        return "has control characters in its name"
    if not parts[0] or DRIVE.match(name) or ".." in parts:
        return "points out of it, by an absolute name, a drive or '..'"
    if name != entry.filename:
        return f"is named for something else, '{shown(entry.filename)}'"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.compress_type not in METHODS:
        return f"is neither stored nor deflated, but of method {entry.compress_type}"
    if entry.file_size > limits.ratio * entry.compress_size + limits.small:
        return f"claims {entry.file_size:,} bytes out of {entry.compress_size:,}"
    return None


def _check_list(file: BinaryIO, size: int, limits: Limits) -> None:
    """Raises BadZipFile if the list of entries alone would fill the memory: zipfile makes an object of each."""
    if not size:
        raise Damaged("it is damaged or no zip (an empty file)")
    for end, length in _lists(file, size).items():
        if length > min(size, limits.entries * USUALLY):
            raise zipfile.BadZipFile(
                f"its list of entries claims {length:,} bytes, more than {limits.entries:,} entries need or "
                "the file has"
            )
        if _count(file, max(0, end - length), end) > limits.entries:
            raise zipfile.BadZipFile(f"it has more than {limits.entries:,} entries")


def _count(file: BinaryIO, start: int, end: int) -> int:
    """How often an entry's signature is found from `start` to `end`."""
    found, kept = 0, b""
    file.seek(start)
    for at in range(start, end, CHUNK):
        kept += file.read(min(CHUNK, end - at))
        found += kept.count(SIGNATURE)
        kept = kept[-(len(SIGNATURE) - 1) :]  # too short for one, which the next chunk may end
    return found


def _lists(file: BinaryIO, size: int) -> dict[int, int]:
    """Every list of entries that a reader may take for the zip's: its length, by the place where it ends."""
    file.seek(max(0, size - COMMENT - END_BYTES - LOCATOR_BYTES - END64_BYTES))
    start, tail = file.tell(), file.read()
    place = len(tail) - END_BYTES
    if not (tail[place:].startswith(END) and tail.endswith(b"\0\0")):  # with a comment
        place = tail.rfind(END)
    if place < 0 or len(tail) < place + END_BYTES:
        raise Damaged("it is damaged or no zip (no list of entries is found)")
    found = {start + place: struct.unpack_from("<L", tail, place + 12)[0]}
    if place >= LOCATOR_BYTES and tail[place - LOCATOR_BYTES : place].startswith(LOCATOR):
        (stated,) = struct.unpack_from("<Q", tail, place - LOCATOR_BYTES + 8)
        before = max(0, start + place - LOCATOR_BYTES - END64_BYTES)
        for at in {before, min(stated, size)}:
            file.seek(at)
            record = file.read(END64_BYTES)
            if len(record) == END64_BYTES and record.startswith(END64):
                found[at] = struct.unpack_from("<Q", record, 40)[0]
        if before in found and found[start + place] == IN_ZIP64:
            del found[start + place]
    return found
