"""Converts published weights, as local files, into this package's, and back; downloads nothing, runs no pickle.

    python launch/convert.py --kind lpips --vgg vgg16-397923af.pth --heads vgg.pth --out lpips.safetensors
    python launch/convert.py --kind edm --file edm-cifar10-32x32-cond-vp.pkl --out runs/edm_cifar10_cond_vp
    python launch/convert.py --kind export --workdir runs/sid_cifar10 --out sid_cifar10.safetensors

LPIPS: torchvision's VGG16 and the heads of LPIPS 0.1 become one file, which keeps the hashes of both. EDM: a
network snapshot of EDM, SiD or SFD becomes a folder that configs name as their teacher. Export: the weights of
a finished run by the names of the EDM code, in a file that torch loads by safetensors.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package may not be installed

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import convert

if __name__ == "__main__":
    sys.exit(convert.main(sys.argv))
