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
from typing import BinaryIO, NamedTuple

from fastdiff_jax.messages import line, shown

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
UTF8 = 1 << 11  # the flag of names in UTF-8; others are in the code page of DOS
CONTROLS = re.compile(r"[\x00-\x1f]")


class Limits(NamedTuple):
    """What a zip may hold; torch's, of a large network, have two thousand entries."""

    entries: int = 20_000
    ratio: int = 200  # of an entry's size to its compressed size
    small: int = 1 << 20  # bytes that an entry may have beyond the ratio
    name: int = 1000  # characters


USUAL = Limits()


class Damaged(zipfile.BadZipFile):
    """What is no zip, or not whole: another copy may be sound."""

    def __init__(self, why: str):
        super().__init__(f"it is damaged or no zip ({why})")


class Refused(zipfile.BadZipFile):
    """What a zip holds, or claims to, that is not read: every copy has it."""


class Archive(zipfile.ZipFile):
    """A zip that closes with itself the file that was opened for it."""

    kept: contextlib.ExitStack | None = None

    def close(self):
        super().close()
        if self.kept is not None:
            self.kept.close()


def opened(file: Path | BinaryIO, limits: Limits = USUAL) -> Archive:
    """The zip at a path or in a file, once its list of entries has been checked; the caller closes it.

    Raises: Damaged; Refused as `check`; both in one line. A list that is longer than `limits.entries` need
      is refused before an object of every entry is made.
    """
    with contextlib.ExitStack() as stack:
        content = stack.enter_context(open(file, "rb")) if isinstance(file, Path) else file
        try:
            size = content.seek(0, os.SEEK_END)
            _check_list(content, size, limits)
            archive = Archive(content)
        except (Damaged, Refused):
            raise
        except DAMAGE as error:
            raise Damaged(line(error)) from None
        check(archive.infolist(), size, limits)
        archive.kept = stack.pop_all()
    return archive


def check(entries: list[zipfile.ZipInfo], size: int, limits: Limits = USUAL) -> None:
    """Checks all entries of a zip, as `zipfile` lists them; `size` is the zip's in bytes.

    Raises: Refused, in one line, for names that are empty, long, have control characters, are not what the
      zip says, or are absolute or lead out; for what is encrypted, or neither stored nor deflated; for more
      entries, bytes or ratios than `limits`; for a name that is there twice; for entries that overlap or lie
      outside the file, headers and the list itself included. Places are as the list gives them: an entry's
      own header, which may have more fields ahead of its content, is not read.
    """
    if len(entries) > limits.entries:
        raise Refused(f"it has more than {limits.entries:,} entries")
    names, listed, end = set(), END_BYTES, 0
    for entry in entries:
        name = entry.orig_filename
        problem = _problem(entry, limits) or ("is there twice" if name in names else None)
        if problem:
            raise Refused(f"its entry '{shown(name)}' {problem}")
        names.add(name)
        listed += LISTED + _name_bytes(entry)
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            what = "ahead of the file" if entry.header_offset < 0 else "within another, so they overlap"
            raise Refused(f"its entry '{shown(entry.orig_filename)}' begins {what}")
        end = entry.header_offset + AHEAD + _name_bytes(entry) + entry.compress_size
    if end > size - listed:
        raise Refused("its entries claim more bytes than the file has, so they overlap")


def controls(name: str) -> bool:
    """Whether a name has control characters."""
    return CONTROLS.search(name) is not None


def _name_bytes(entry: zipfile.ZipInfo) -> int:
    """How long an entry's name is in the zip."""
    return len(entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8 else "cp437"))


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
    """Raises Refused if the list of entries alone would fill the memory: zipfile makes an object of each."""
    if not size:
        raise Damaged("an empty file")
    for end, length in _lists(file, size).items():
        if length > min(size, limits.entries * USUALLY):
            raise Refused(
                f"its list of entries claims {length:,} bytes, more than {limits.entries:,} entries need or "
                "the file has"
            )
        if _count(file, max(0, end - length), end) > limits.entries:
            raise Refused(f"it has more than {limits.entries:,} entries")


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
    place = _end(tail)
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


def _end(tail: bytes) -> int:
    """Where the end of the list of entries begins in the last bytes of a file: its comment ends with the file.

    Raises: Damaged if there is none; Refused if readers may disagree which one it is.
    """
    places = [found.start() for found in re.finditer(END, tail)]
    fitting = [place for place in places if _comment_ends(tail, place) == len(tail)]
    if not fitting:
        raise Damaged("no list of entries is found at its end")
    # zipfile takes one without a comment, else the last one, whether its comment fits or not; a first one that
    # fits may have others in its comment, fitting or not.
    if fitting[0] not in (len(tail) - END_BYTES, places[-1]):
        raise Refused("its comment holds another end of a zip")
    return fitting[0]


def _comment_ends(tail: bytes, place: int) -> int | None:
    """Where the comment of an end at `place` ends, or None if the end itself is cut off."""
    if place + END_BYTES > len(tail):
        return None
    return place + END_BYTES + struct.unpack_from("<H", tail, place + 20)[0]
