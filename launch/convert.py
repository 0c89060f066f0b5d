"""Converts published weights, as local files, into this package's own; downloads nothing, runs no pickle.

    python launch/convert.py --kind lpips --vgg vgg16-397923af.pth --heads vgg.pth --out lpips.safetensors

LPIPS: torchvision's VGG16 and the heads of LPIPS 0.1 become one file, which keeps the hashes of both.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package may not be installed

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import convert

if __name__ == "__main__":
    sys.exit(convert.main(sys.argv))
