"""Measures an experiment on this machine: compile time, ms per training step, images/s sampled, peak memory.

    python launch/benchmark.py --config configs/sid_digits.py [--steps 20]
    python launch/benchmark.py --config configs/edm_imagenet64.py --forward 1 --steps 3
    python launch/benchmark.py --config configs/edm_cifar10.py --input --steps 50

The second times nothing but the network's forward pass, here for one image, and states the memory of that; the
third the images that reach training, with and without augmentation, for which the data must be there.
Weights are fresh (a student's teacher too): speed does not depend on them, and nothing is trained or written.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import configs.common

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import command_line

if __name__ == "__main__":
    sys.exit(command_line.benchmark(sys.argv))
