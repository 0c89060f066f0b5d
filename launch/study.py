"""Measures many samplers, students or teachers at many costs, into one table and one picture.

    python launch/study.py --config configs/solvers_digits.py [--workdir DIR] [--config.key=value]
    python launch/study.py --config configs/fdm_study_digits.py    # teachers at one budget

What is compared is trained first if it has not been. Stopped at any moment, the same command goes on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # config files import configs.common

from fastdiff_jax.runtime import backend

backend.setup()  # before anything computes

from fastdiff_jax.runtime import command_line

if __name__ == "__main__":
    sys.exit(command_line.study(sys.argv))
