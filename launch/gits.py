"""Searches noise levels for few steps of a trained teacher: GITS, dynamic programming on its trajectories.

    python launch/gits.py --config configs/edm_digits.py [--steps 3,4,5] [--solver ipndm_4] [--workdir DIR]

Trains nothing. Prints the found levels and how near they come to the fine solution, and writes
<workdir>/gits.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import configs.common

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import search

if __name__ == "__main__":
    sys.exit(search.main(sys.argv))
