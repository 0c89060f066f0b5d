"""Samples a trained teacher step by step and many steps at once (ParaDiGMS), and compares images and costs.

    python launch/paradigms.py --config configs/edm_digits.py [--solvers euler,dpmpp_2m] [--nfe 100]
        [--window 20] [--tolerance 1e-3] [--num 32] [--seed 0] [--workdir DIR]

Trains and writes nothing. On several devices the window is spread over them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import configs.common

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import parallel

if __name__ == "__main__":
    sys.exit(parallel.main(sys.argv))
