"""Writes mean and covariance of a data set's features, the npz with mu and sigma that FIDs are measured to.

    python launch/reference_stats.py --config configs/NAME.py [--column fid] [--out FILE.npz]
        [--config.key=value]

Data and feature net are the config's, config.data and config.evaluation.panel.features.<column>. A panel reads
such a file, or one that others have published, as features.<column>.reference.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import configs.common

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import reference_stats

if __name__ == "__main__":
    sys.exit(reference_stats.main(sys.argv))
