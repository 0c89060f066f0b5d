"""Makes an image set in EDM's form, a zip of PNG files with labels, which data "edm_zip" and EDM's code read.

    python launch/dataset.py --from tfds:cifar10 --out data/cifar10-32x32.zip
    python launch/dataset.py --from FOLDER --out data/mine-64x64.zip --transform center-crop --resolution 64x64

A folder's labels are those of its dataset.json, or the ranks of its subfolders' names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as every command does

from fastdiff_jax.runtime import dataset_zip

if __name__ == "__main__":
    sys.exit(dataset_zip.main(sys.argv))
