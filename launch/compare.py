"""Results of several runs in one table, if they were measured alike; else one line that says what differs.

    python launch/compare.py --cards runs/sid_cifar10,runs/sfd_cifar10,published:edm-cifar10-uncond

A card is a card.json, the workdir that it is in, or a published result.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package may not be installed

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import compare

if __name__ == "__main__":
    sys.exit(compare.main(sys.argv))
