"""Trains, samples and evaluates an experiment.

python launch/main.py --config configs/sid_digits.py [--workdir DIR]
    [--mode train|sample|eval|dry_run] [--config.key=value]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import configs.common

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import command_line

if __name__ == "__main__":
    sys.exit(command_line.main(sys.argv))
