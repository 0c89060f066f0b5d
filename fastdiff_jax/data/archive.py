"""Files of a data set in a zip or a folder, read as if a stranger had made them.

Nothing is unpacked to disk, and no more memory is taken than the caps say: numbers of entries, bytes of one,
ratios of compression, pixels of an image. What goes beyond is refused in one line.
"""

import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from fastdiff_jax import messages, zips

MOST_OTHERS = 1000  # entries beside the images: a data set has one, its labels
MOST_BYTES = 1 << 26  # of one image file
MOST_PIXELS = 1 << 26  # of one image, 8192 x 8192
SLACK = 1 << 16  # bytes that any entry may take, however small in the file
# ImageNet has 1.3 million images; text compresses about tenfold.
LIMITS = zips.Limits(entries=4_000_000, ratio=100, small=SLACK)
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}


def shown(name: str) -> str:
    """A file's name as part of a message."""
    return messages.shown(name, limit=LIMITS.name)


def is_image(name: str) -> bool:
    """Whether a file's name ends as that of an image."""
    return PurePosixPath(name).suffix.lower() in FORMATS


class Zip:
    """The entries of a zip. Threads may share one; a copy in another process opens the file again.

    Raises: ValueError if it is no zip, or not one of a data set's kind.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.file = zips.opened(self.path, LIMITS)
        except zips.Damaged as error:
            raise ValueError(f"{self.path}: {error}; make or fetch it again.") from None
        except zips.Refused as error:
            raise self._refused(error) from None
        infos = [info for info in self.file.infolist() if not info.is_dir()]
        if problem := _problem(infos):
            self.file.close()
            raise self._refused(problem)
        self.names = [info.filename for info in infos]

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """The bytes of an entry. Raises: ValueError if it is damaged or longer than `most`."""
        try:
            info = self.file.getinfo(name)
            if info.file_size <= most:
                return self.file.read(info)
        except zips.DAMAGE as error:
            raise ValueError(
                f"{self.path}: {shown(name)} is damaged ({messages.line(error)}); make or fetch the zip again."
            ) from None
        raise ValueError(f"{self.path}: {shown(name)} has {info.file_size:,} bytes; {most:,} is the most.")

    def _refused(self, problem) -> ValueError:
        return ValueError(f"{self.path} is refused: {problem}; get the data set from where you trust it.")

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
            if zips.controls(name):
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
        raise ValueError(f"{name} claims more pixels than are read ({messages.line(error)})") from None
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
        raise ValueError(f"{name} is damaged ({messages.line(error)}).") from None


def _problem(infos: list[zipfile.ZipInfo]) -> str | None:
    """What speaks against the files of a zip as those of a data set, or None."""
    for info in infos:
        if is_image(info.filename) and not info.file_size:
            return f"its image '{shown(info.filename)}' is empty"
    others = sum(not is_image(info.filename) for info in infos)
    if others > MOST_OTHERS:
        return f"{others:,} of its entries are no images"
    return None
