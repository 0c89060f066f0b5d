"""Records the teacher's trajectories that a student is trained on, so that its training calls no teacher.

    python launch/record.py --config configs/sfd_digits.py:cached [--num 4096] [--seed 0] [--out DIR]

Trains nothing: the teacher must be there. Stopped at any moment, the same command goes on; with a larger --num
it adds to what is there. Writes shards and pairs.json, which data "pairs" reads.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import configs.common

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import record

if __name__ == "__main__":
    sys.exit(record.main(sys.argv))
