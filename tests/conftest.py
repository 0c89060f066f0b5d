"""Set-up of the test session."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
# Most programs of a test run once: compiling is what they cost, and this halves it. Child processes inherit it.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import jax  # noqa: E402

from fastdiff_jax.runtime import backend  # noqa: E402

backend.setup()


def pytest_addoption(parser):
    folder = str(HERE / "goldens")
    parser.addoption("--goldens", default=folder, help="folder of the golden files to replay")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than some ten seconds")
    config.addinivalue_line("markers", "tfds: reads a prepared TFDS data set from TFDS_DATA_DIR")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def pytest_terminal_summary(terminalreporter):
    """Ends goldens_test.py with keys checked / keys; declared inputs count as checked."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    rows = sorted(row for call in calls for name, row in call.user_properties if name == "golden")
    if rows:
        terminalreporter.section("goldens: keys checked / keys")
    for file, consumed, keys, note in rows:
        terminalreporter.write_line(f"{file:<24}{consumed:>4} / {keys:<4} {note}")
