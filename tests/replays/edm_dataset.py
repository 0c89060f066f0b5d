"""EDM's zips as its tool wrote them, what it read back, our writer on the same images, and batches of seeds."""

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastdiff_jax.data import edm_zip, order, raw_images
from fastdiff_jax.runtime import dataset_zip

SEED = 3  # of the recorded choices


def replay(golden):
    names = [key.removesuffix("_zip_bytes") for key in golden.keys() if key.endswith("_zip_bytes")]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / f"{name}.zip"
            path.write_bytes(golden.input(f"{name}_zip_bytes").tobytes())
            replay_set(golden, name, path)
            replay_writer(golden, name, path)
    for key in golden.keys("split_"):
        count, most, world = map(int, key.split("_")[1:])
        batches = order.split(np.arange(count), most, world)
        golden.check(key, [len(batch) for batch in batches], rtol=0.0)
        assert np.array_equal(np.concatenate(batches), np.arange(count))


def replay_set(golden, name, path):
    images = edm_zip.Images(path)
    golden.check(f"{name}_images_chw", planes(images), rtol=0.0)
    golden.check(f"{name}_labels", images.labels(), rtol=0.0)
    if not golden.keys(f"{name}_sub_"):
        return
    flipped = golden.arrays[f"{name}_sub_xflip"]
    kept = int(np.sum(flipped == 0))
    some = edm_zip.Images(path, max_size=kept, seed=SEED, xflip=bool(flipped.any()))
    golden.check(f"{name}_sub_raw_idx", some.order, rtol=0.0)
    golden.check(f"{name}_sub_xflip", some.flipped, rtol=0.0)
    golden.check(f"{name}_sub_images_chw", planes(some), rtol=0.0)
    golden.check(f"{name}_sub_labels", some.labels(), rtol=0.0)


def replay_writer(golden, name, path):
    """What our tool makes of EDM's zip is read back the same; of recorded pictures it cuts the same squares."""
    again = path.with_name(f"{name}_again.zip")
    dataset_zip.write(raw_images.source(str(path)), again)
    theirs, ours = edm_zip.Images(path), edm_zip.Images(again)
    assert ours.names == theirs.names
    assert np.array_equal(planes(ours), planes(theirs))
    assert np.array_equal(ours.labels(), theirs.labels())
    if f"{name}_source_hwc" not in golden.arrays:
        return
    pictures = path.with_name(f"{name}_pictures")
    pictures.mkdir()
    for number, picture in enumerate(golden.input(f"{name}_source_hwc")):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        (pictures / f"{number:04d}.png").write_bytes(buffer.getvalue())
    cut, size = path.with_name(f"{name}_cut.zip"), theirs.image(0).shape
    dataset_zip.write(raw_images.source(str(pictures)), cut, "center-crop", (size[1], size[0]))
    golden.check(f"{name}_images_chw", planes(edm_zip.Images(cut)), rtol=0.0, atol=1.0)


def planes(images: edm_zip.Images) -> np.ndarray:
    """All images, (N,C,H,W)."""
    return np.stack([images.image(index) for index in range(len(images))]).transpose(0, 3, 1, 2)
