"""The command line of launch/dataset.py: image sets in EDM's form, of TFDS, folders, zips and binary files."""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from fastdiff_jax.data import edm_zip, raw_images
from fastdiff_jax.runtime import command_line, experiment, files, progress

STAMP = (1980, 1, 1, 0, 0, 0)  # of every entry: equal images, equal bytes
TRANSFORMS = ("", "center-crop", "center-crop-wide")
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
USAGE = "python launch/dataset.py --from SOURCE --out FILE.zip [flags]"


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code, see `command_line`."""

    def command():
        values = flags.FlagValues()
        define(values)
        if {"--help", "-help", "-h", "--helpfull"} & set(arguments[1:]):
            rows = [f"  --{name}: {values[name].help}" for name in values]
            raise command_line.Help("\n".join([USAGE, *rows]))
        try:
            extra = values(arguments)[1:]
        except flags.Error as error:
            raise ValueError(str(error)) from None
        if extra or not values["from"].value or not values.out:
            asked = f"unknown argument {extra[0]!r}" if extra else "--from and --out must be given"
            raise ValueError(f"{asked}; usage: {USAGE}, from {raw_images.KINDS}.")
        made = raw_images.source(values["from"].value, values.split)
        size = resolution(values.resolution) if values.resolution else None
        write(made, Path(values.out), values.transform, size, values.max_images or 0)
        return 0

    return command_line.guarded(command)


def define(values: flags.FlagValues) -> None:
    """Defines the flags of launch/dataset.py."""
    given = dict(flag_values=values)
    flags.DEFINE_string("from", None, f"What is read: {raw_images.KINDS}.", **given)
    flags.DEFINE_string("out", None, "What is written: a .zip, or a folder.", **given)
    flags.DEFINE_string("split", "train", "Split of a TFDS data set.", **given)
    flags.DEFINE_enum(
        "transform", "", list(TRANSFORMS),
        "How images become squares: none (stretched to --resolution), their middle, or their middle between "
        "black bars.", **given,
    )  # fmt: skip
    flags.DEFINE_string("resolution", None, "WIDTHxHEIGHT, such as 64x64; images' own by default.", **given)
    flags.DEFINE_integer("max_images", None, "Only so many, from the first on.", lower_bound=1, **given)


def resolution(text: str) -> tuple[int, int]:
    """(width, height) of "64x64". Raises: ValueError for another form."""
    match = SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"--resolution is WIDTHxHEIGHT, such as 64x64; got {text!r}.")
    return int(match[1]), int(match[2])


# Transforms.


def fitted(image: np.ndarray, transform: str, size: tuple[int, int] | None) -> np.ndarray:
    """One image through a transform: uint8 (H,W) or (H,W,3) -> the same.

    "" stretches to `size` (width, height), if there is one; "center-crop" takes the largest square of the
    middle; "center-crop-wide" takes its largest part of the shape of `size`, and puts bars above and below; of
    gray both make RGB. All resize by Lanczos' filter.
    """
    if transform:
        image = np.repeat(image[:, :, None], 3, 2) if image.ndim == 2 else image
        height, width = image.shape[:2]
        shape = size if transform == "center-crop-wide" else (1, 1)
        share = min(width / shape[0], height / shape[1])
        wide, high = round(share * shape[0]), round(share * shape[1])
        top, left = (height - high) // 2, (width - wide) // 2
        image = image[top : top + high, left : left + wide]
    if size and image.shape[1::-1] != size:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    if transform == "center-crop-wide":
        before = (size[0] - size[1]) // 2
        image = np.pad(image, ((before, size[0] - size[1] - before), (0, 0), (0, 0)))
    return image


def check_transform(transform: str, size: tuple[int, int] | None) -> None:
    """Raises ValueError for a transform without the resolution that it needs."""
    if transform and not size:
        raise ValueError(f"--transform {transform} needs --resolution, such as 64x64.")
    if transform == "center-crop" and size[0] != size[1]:
        raise ValueError(f"--transform center-crop makes squares; got --resolution {size[0]}x{size[1]}.")
    if transform == "center-crop-wide" and size[0] <= size[1]:
        raise ValueError(f"--transform center-crop-wide needs a wide --resolution; got {size[0]}x{size[1]}.")


# Writing.


def write(source: raw_images.Source, out: Path, transform: str = "", size: tuple[int, int] | None = None,
          most: int = 0) -> None:  # fmt: skip
    """Writes a set that `data.edm_zip` and EDM's code read, in one piece or not at all.

    Args:
      out: a .zip, or a folder to be.
      most: images at most; 0 for all.
    Raises: ValueError if `out` is there already, or images are not squares of one size, a power of two, and of
      one kind, gray or RGB.
    """
    check_transform(transform, size)
    out, count = Path(out), min(source.count, most or source.count)
    experiment.check_writable(out.parent, "--out")
    if out.exists():
        raise ValueError(f"{out} is there, and nothing is overwritten; delete it, or choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    labels, shape = [], None
    with _target(out) as put, progress.count(count, "img") as bar:
        for number, (image, label) in enumerate(itertools.islice(source.images(), count)):
            image = fitted(image, transform, size)
            check_image(image, shape, number)
            shape = image.shape
            name = f"{number // 1000:05d}/img{number:08d}.png"
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG", compress_level=0, optimize=False)
            put(name, buffer.getvalue())
            labels.append((name, label))
            bar.update()
        if not labels:
            raise ValueError("--from has no images, so there is no set to write; name a source that has some.")
        missing = any(label is None for _, label in labels)
        document = {"labels": None if missing else labels} | ({"note": source.note} if source.note else {})
        put(edm_zip.LABELS, json.dumps(document).encode())
    made = edm_zip.Images(out)
    known = made.raw_labels
    classes = made.width if known is not None and known.ndim == 1 else 0
    told = "no labels" if known is None else f"{made.width} {'classes' if classes else 'numbers a label'}"
    progress.say(
        f"wrote {out}: {count} images of {shape[1]}x{shape[0]}, {told}. In a config:\n"
        f'data = dict(name="edm_zip", path="{out}", size={shape[0]}, '
        f"channels={shape[2] if len(shape) == 3 else 1}, labels={classes})"
    )


def check_image(image: np.ndarray, shape: tuple[int, ...] | None, number: int) -> None:
    """Raises ValueError if an image cannot be of a set whose others have `shape`."""
    height, width = image.shape[:2]
    if height != width or width & (width - 1):
        raise ValueError(
            f"image {number} is {width}x{height}; a set has squares whose side is a power of two: give "
            "--resolution 64x64, and --transform center-crop to keep shapes."
        )
    if shape is not None and image.shape != shape:
        raise ValueError(
            f"image {number} has the shape {image.shape}, those before it {shape}; --transform center-crop "
            "with --resolution gives all of them one size and RGB."
        )


@contextlib.contextmanager
def _target(out: Path) -> Iterator[Callable[[str, bytes], None]]:
    """put(name, content) into a zip or folder that appears at `out` once all is in."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        if out.suffix == ".zip":
            with zipfile.ZipFile(partial, "x", zipfile.ZIP_STORED) as file:
                yield lambda name, content: file.writestr(zipfile.ZipInfo(name, STAMP), content)
        else:
            partial.mkdir()
            yield lambda name, content: files.write(partial / name, content)
        os.replace(partial, out)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
