"""Files that are whole or absent, inventories that tell damage, and a lock on a workdir."""

import fcntl
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Inventory = Mapping[str, list[int]]  # relative path -> [bytes, crc32]


def write(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step: whenever a kill comes, the old file is there or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write` of a JSON document with sorted keys."""
    write(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """The document at `path`, or None when there is no such file.

    Raises: ValueError if it is not JSON, as after a truncation.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise ValueError(
            f"{path} is damaged: it is not JSON; delete it and run the training again, which writes it anew."
        ) from None


def inventory(directory: Path) -> Inventory:
    """Size and checksum of every file below `directory`."""
    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
    named = {path.relative_to(directory).as_posix(): path for path in paths}
    return {name: [path.stat().st_size, _crc(path)] for name, path in named.items()}


def damage(directory: Path, expected: Inventory) -> str | None:
    """The first difference from the inventory in words, or None. Files beyond it are no damage."""
    for name, (size, crc) in expected.items():
        path = Path(directory) / name
        if not path.is_file():
            return f"{name} is missing"
        found = path.stat().st_size
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
        if _crc(path) != crc:
            return f"the contents of {name} have changed"
    return None


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


class Lock:
    """An exclusive lock on a directory that ends with its holder, however that dies.

    Raises: ValueError naming the holder, if another process (or another Lock of this one) has it.
    """

    def __init__(self, directory: Path):
        # Opened without truncation: the holder's number is there until the lock is ours.
        self._file = open(Path(directory) / ".lock", "a+")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise ValueError(
                f"workdir {directory} is in use by another process (pid {holder}); "
                "wait for it, or choose another with --workdir."
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Gives the lock up; safe to call twice."""
        self._file.close()
