"""Files of a data set in a zip or a folder, read as if a stranger had made them.

Nothing is unpacked to disk, and no more memory is taken than the caps say: numbers of entries, bytes of one,
ratios of compression, pixels of an image. What goes beyond is refused in one line.
"""

import contextlib
import io
import os
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

MOST_ENTRIES = 4_000_000  # ImageNet has 1.3 million
MOST_OTHERS = 1000  # entries beside the images: a data set has one, its labels
MOST_BYTES = 1 << 26  # of one image file
MOST_PIXELS = 1 << 26  # of one image, 8192 x 8192
MOST_RATIO = 100  # bytes for one compressed byte; text compresses about tenfold
SLACK = 1 << 16  # bytes that any entry may take, however small in the file
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
HEADERS = 30 + 46  # bytes ahead of an entry and in the list of entries, besides its name in both
ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
END, END64, LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


def is_image(name: str) -> bool:
    """Whether a file's name ends as that of an image."""
    return PurePosixPath(name).suffix.lower() in FORMATS


def shown(name: str) -> str:
    """A file's name as part of a message: without characters that a terminal obeys."""
    return ascii(name)[1:-1]


class Zip:
    """The entries of a zip. Threads may share one; a copy in another process opens the file again.

    Raises: ValueError if it is no zip, or not one of a data set's kind.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        _check_directory(self.path)
        with self._damage():
            self.file = zipfile.ZipFile(self.path)
        infos = [info for info in self.file.infolist() if not info.is_dir()]
        if problem := _problem(infos, self.path.stat().st_size):
            self.file.close()
            raise ValueError(f"{self.path} is refused: {problem}; get the data set from where you trust it.")
        self.names = [info.filename for info in infos]

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """The bytes of an entry. Raises: ValueError if it is damaged or longer than `most`."""
        with self._damage(name):
            info = self.file.getinfo(name)
            if info.file_size > most:
                raise ValueError(
                    f"{self.path}: {shown(name)} has {info.file_size:,} bytes; {most:,} is the most."
                )
            return self.file.read(info)

    @contextlib.contextmanager
    def _damage(self, name: str = ""):
        try:
            yield
        except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, KeyError, UnicodeError,
                struct.error, zlib.error, OSError, OverflowError) as error:  # fmt: skip
            # The last two are of places outside the file, which a list of entries may name.
            what = f"{self.path}: {shown(name)}" if name else str(self.path)
            raise ValueError(f"{what} is damaged or no zip ({_line(error)}); make or fetch it again.") from None

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.__init__(path)


class Folder:
    """The files below a folder, by their paths within it; links and what is no file are left out.

    Raises: ValueError if a name has control characters.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.names = [
            (Path(base) / name).relative_to(self.path).as_posix()
            for base, _, names in os.walk(self.path)
            for name in names
            if stat.S_ISREG(os.lstat(Path(base) / name).st_mode)  # a pipe would be waited for without end
        ]
        for name in self.names:
            if _controls(name):
                raise ValueError(
                    f"{self.path}: the name {shown(name)} has control characters; rename the file."
                )

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """The bytes of a file. Raises: ValueError if it is longer than `most`."""
        with open(self.path / name, "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"{self.path}: {shown(name)} has more than the {most:,} bytes that are read.")
        return content


def opened(path: Path) -> Zip | Folder:
    """The archive at `path`. Raises: ValueError if there is none, or as `Zip`."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no zip or folder {path}; give another path, or make it.")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder; give another path.")
    return Folder(path) if path.is_dir() else Zip(path)


def image(content: bytes, name: str) -> Image.Image:
    """An image, of which only the header has been read. Raises: ValueError if it is none, or too large."""
    kind = FORMATS.get(PurePosixPath(name).suffix.lower())
    try:
        found = Image.open(io.BytesIO(content), formats=[kind] if kind else [])
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} claims more pixels than are read ({_line(error)})") from None
    except (OSError, ValueError, SyntaxError, struct.error):
        raise ValueError(f"{name} is no {kind or 'known'} image, or damaged.") from None
    width, height = found.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{name} claims {width}x{height} pixels; {MOST_PIXELS:,} at most are read.")
    return found


def pixels(found: Image.Image, name: str) -> np.ndarray:
    """uint8 (H,W) or (H,W,C) of an image. Raises: ValueError if it is damaged."""
    try:
        return np.asarray(found)
    except (OSError, ValueError, SyntaxError, IndexError, struct.error, zlib.error) as error:
        raise ValueError(f"{name} is damaged ({_line(error)}).") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _controls(name: str) -> bool:
    return any(ord(character) < 32 for character in name)


def _problem(infos: list[zipfile.ZipInfo], size: int) -> str | None:
    """What speaks against the entries of a zip file of `size` bytes, or None."""
    for info in infos:
        name, ratio = info.filename, MOST_RATIO * info.compress_size
        if ABSOLUTE.match(name) or ".." in name.replace("\\", "/").split("/"):
            return f"its entry '{shown(name)}' points out of it"
        if _controls(name):
            return f"the name of its entry '{shown(name)}' has control characters"
        if name != info.orig_filename:
            return f"its entry '{shown(info.orig_filename)}' is named for something else"
        if info.flag_bits & 1:
            return f"its entry '{shown(name)}' is encrypted"
        if info.compress_type not in PLAIN:
            return (
                f"its entry '{shown(name)}' is neither stored nor deflated, but of method {info.compress_type}"
            )
        if info.file_size > ratio + SLACK:
            return f"its entry '{shown(name)}' claims {info.file_size:,} bytes out of {info.compress_size:,}"
        if is_image(name) and not info.file_size:
            return f"its image '{shown(name)}' is empty"
    if sum(info.compress_size + HEADERS + 2 * len(info.orig_filename) for info in infos) > size:
        return "its entries claim more bytes than the file has, so they overlap"
    others = sum(not is_image(info.filename) for info in infos)
    if others > MOST_OTHERS:
        return f"{others:,} of its entries are no images"
    if len({info.filename for info in infos}) < len(infos):
        return "two of its entries have one name"
    return None


def _check_directory(path: Path) -> None:
    """Raises ValueError if the zip lists more entries than are read: the list alone would fill the memory."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - (1 << 16) - 22 - 76))  # the longest comment, and what zip64 has ahead
        start, tail = file.tell(), file.read()
        place = len(tail) - 22
        if not (tail[place:].startswith(END) and tail.endswith(b"\0\0")):  # with a comment
            place = tail.rfind(END)
        if place < 0 or len(tail) < place + 22:
            raise ValueError(
                f"{path} is damaged or no zip (no list of entries is found); make or fetch it again."
            )
        lengths = [struct.unpack_from("<L", tail, place + 12)[0]]
        if tail[max(0, place - 20) : place].startswith(LOCATOR):
            (stated,) = struct.unpack_from("<Q", tail, place - 20 + 8)
            for at in {start + place - 20 - 56, stated}:
                file.seek(min(max(at, 0), size))
                record = file.read(56)
                if len(record) == 56 and record.startswith(END64):
                    lengths.append(struct.unpack_from("<Q", record, 40)[0])
    lengths = [length for length in lengths if length != 0xFFFFFFFF] or [0]
    if max(lengths) > min(size, MOST_ENTRIES * 128):
        raise ValueError(
            f"{path} is refused: its list of entries claims {max(lengths):,} bytes, more than "
            f"{MOST_ENTRIES:,} entries need or the file has; get the data set from where you trust it."
        )
