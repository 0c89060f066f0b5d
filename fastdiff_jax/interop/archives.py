"""Zip archives of strangers: nothing is taken out before the whole directory has been checked."""

import contextlib
import itertools
import mmap
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastdiff_jax.interop.pickles import shown

SIGNATURE = re.compile(rb"PK\x01\x02")  # of an entry in the directory


class Limits(NamedTuple):
    """What an archive may hold; torch's, of a large network, have two thousand entries."""

    entries: int = 20_000
    ratio: int = 200  # of an entry's size to its compressed size
    small: int = 1 << 20  # bytes of an entry whose ratio does not matter
    name: int = 1000  # characters


USUAL = Limits()


@contextlib.contextmanager
def opened(path: Path, limits: Limits = USUAL) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`, once its directory has been checked.

    Raises: zipfile.BadZipFile for more entries, sizes or ratios than `limits`, entries that overlap, are
      encrypted or have the same name twice, and names that are absolute or lead out of the archive.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise zipfile.BadZipFile("an empty file")
        # Before zipfile reads the directory, which makes an object of every entry that there is.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = sum(1 for _ in itertools.islice(SIGNATURE.finditer(content), limits.entries + 1))
        if found > limits.entries:
            raise zipfile.BadZipFile(f"more than {limits.entries} entries")
        try:
            with zipfile.ZipFile(file) as archive:
                check(archive.infolist(), path.stat().st_size, limits)
                yield archive
        except OSError as error:  # of a place before the file's beginning, which a directory may name
            raise zipfile.BadZipFile(f"an entry that cannot be reached ({error})") from None


def check(entries: list[zipfile.ZipInfo], size: int, limits: Limits = USUAL) -> None:
    """Raises zipfile.BadZipFile, see `opened`; `size` is that of the archive in bytes."""
    names = set()
    for entry in entries:
        name = entry.orig_filename
        problem = _problem(name, limits)
        if problem is None and entry.flag_bits & 1:
            problem = "is encrypted"
        if problem is None and name in names:
            problem = "is there twice"
        most = max(limits.ratio * entry.compress_size, limits.small)
        if problem is None and entry.file_size > most:
            problem = f"would unpack from {entry.compress_size} to {entry.file_size} bytes"
        if problem:
            raise zipfile.BadZipFile(f"the entry {shown(name)} {problem}")
        names.add(name)
    packed = sum(entry.compress_size for entry in entries)
    if packed > size:
        raise zipfile.BadZipFile(f"entries that overlap: {packed} bytes in an archive of {size}")


def stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry that is not compressed, as torch's data are not; so it is no longer than the archive."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise zipfile.BadZipFile(f"the compressed entry {shown(name)}, which torch does not write")
    return archive.read(entry)


def _problem(name, limits):
    parts = re.split(r"[/\\]", name)
    if not name or len(name) > limits.name or any(ord(c) < 32 for c in name):
        return "has no usable name"
    if name[0] in "/\\" or ":" in parts[0]:
        return "has an absolute name"
    if ".." in parts:
        return "leads out of the archive"
    return None
