"""Replays every golden file in float64 and accounts for every key.

    pytest tests/goldens_test.py [--goldens DIR]

The replay of `name.npz` is `tests/replays/name.py`, that of `folder/name.npz` is
`tests/replays/folder_name.py`. What cannot be replayed yet is listed in
`tests/goldens_pending.txt`. The run ends with the account.
"""

import importlib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from golden import Golden

HERE = Path(__file__).parent
REPLAYS = HERE / "replays"


class Pending(NamedTuple):
    """One line of goldens_pending.txt."""

    file: str
    prefix: str  # of keys; empty: the whole file
    reason: str

    def names(self, file: str) -> bool:
        """Whether the line is about a file."""
        return file.startswith(self.file) if self.file.endswith("/") else file == self.file


class Account(NamedTuple):
    """What became of one golden file."""

    note: str
    problems: list[str]


def parse(text: str) -> list[Pending]:
    """The lines of a pending list. Raises: ValueError for a line without a reason."""
    lines = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            where, _, reason = line.partition(" ")
            if not reason.strip():
                raise ValueError(f"pending line {line!r} gives no reason; add one behind the name.")
            file, _, prefix = where.partition(":")
            lines.append(Pending(file, prefix, reason.strip()))
    return lines


PENDING = parse((HERE / "goldens_pending.txt").read_text())


def module(file: str) -> str:
    """Name of the replay module of a golden file."""
    return file.removesuffix(".npz").replace("/", "_")


def replay_of(file: str) -> Callable[[Golden], None] | None:
    """The replay of a golden file, None if it is not written."""
    if not (REPLAYS / f"{module(file)}.py").is_file():
        return None
    return importlib.import_module(f"replays.{module(file)}").replay


def account(golden: Golden, file: str, replay: Callable | None, pending: list[Pending]) -> Account:
    """Replays a file, if there is a replay, and says what is wrong with what that leaves."""
    pending = [line for line in pending if line.names(file)]
    whole = [line.reason for line in pending if not line.prefix]
    prefixes = [line.prefix for line in pending if line.prefix]
    if replay is None:
        ask = f"{file} has no replay: write tests/replays/{module(file)}.py, or list it as pending."
        note = f"pending: {whole[0]}" if whole else "no replay"
        return Account(note, [] if whole else [ask])
    with jax.enable_x64(True):
        replay(golden)
    left = golden.unconsumed()
    unknown = [key for key in left if not key.startswith(tuple(prefixes))]
    problems = [f"{file} is replayed, but listed as pending: delete the line."] if whole else []
    problems += [f"{file}: no replay consumes the key {key}." for key in unknown]
    problems += [
        f"{file}: the pending prefix {prefix} matches no key that is left: delete the line."
        for prefix in prefixes
        if not any(key.startswith(prefix) for key in left)
    ]
    problems += [
        f"{file}: its replay claims the fixture {name}, but did not open it."
        for name in sorted(fixtures(golden.folder, claims(module(file))) - golden.opened)
    ]
    note = f"{len(golden.checked)} compared, {len(golden.inputs - golden.checked)} inputs"
    listed = len(left) - len(unknown)
    note += f"; {listed} pending: {', '.join(prefixes)}" if listed else ""
    note += f"; {len(unknown)} unconsumed" if unknown else ""
    return Account(note, problems)


def claims(replay: str) -> tuple[str, ...]:
    """Patterns of the fixture files that a replay reads: its FIXTURES, if it has any."""
    return getattr(importlib.import_module(f"replays.{replay}"), "FIXTURES", ())


def fixtures(folder: Path, patterns: tuple[str, ...]) -> set[str]:
    """Names of the .pkl files in `folder` that match a pattern."""
    names = {path.name for path in folder.glob("*.pkl")}
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}


def pytest_generate_tests(metafunc):
    if "golden_file" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("goldens"))
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npz"))
        if not files:
            raise pytest.UsageError(f"--goldens {folder} holds no .npz files; name their folder.")
        metafunc.parametrize("golden_file", files)


def test_replays(golden_file, request, record_property):
    """One golden file: every key is compared, a declared input, or listed as pending."""
    golden = Golden(Path(request.config.getoption("goldens")) / golden_file)
    made = None
    try:
        made = account(golden, golden_file, replay_of(golden_file), PENDING)
    finally:
        keys = len(golden.arrays)
        consumed = keys - len(golden.unconsumed())
        record_property("golden", [golden_file, consumed, keys, made.note if made else "FAILED"])
    assert not made.problems, "\n".join(made.problems)


def test_fixtures_are_claimed_or_pending(request):
    folder = Path(request.config.getoption("goldens"))
    replays = [path.stem for path in REPLAYS.glob("*.py")]
    claimed = fixtures(folder, sum((claims(replay) for replay in replays), ()))
    for path in sorted(folder.glob("*.pkl")):
        listed, read = any(line.names(path.name) for line in PENDING), path.name in claimed
        assert listed or read, f"{path.name} is in no replay's FIXTURES, and not pending."
        assert not (listed and read), f"{path.name} is replayed: delete its pending line."


def test_no_file_is_pending_that_has_a_replay():
    stale = [line.file for line in PENDING if not line.prefix and replay_of(line.file) is not None]
    assert not stale, f"replayed, but listed as pending: {stale}"


@pytest.fixture
def planted(tmp_path):
    """A golden of four keys."""
    x = np.arange(3.0)
    np.savez(tmp_path / "planted.npz", x=x, y=x**2, more_a=1.0, more_b=2.0)
    return Golden(tmp_path / "planted.npz")


def squares(golden):
    golden.check("y", golden.input("x") ** 2)


def problems(golden, replay, pending=""):
    return account(golden, "planted.npz", replay, parse(pending)).problems


class TestAccount:
    """The account itself, on a planted file."""

    @pytest.fixture(autouse=True)
    def no_claims(self, monkeypatch):
        monkeypatch.setattr(f"{__name__}.claims", lambda replay: ())

    def test_unconsumed_keys_fail_by_name(self, planted):
        keys = [problem.split()[-1] for problem in problems(planted, squares)]
        assert keys == ["more_a.", "more_b."]

    def test_pending_keys_pass_and_are_counted(self, planted):
        made = account(planted, "planted.npz", squares, parse("planted.npz:more_  soon"))
        assert made == Account("1 compared, 1 inputs; 2 pending: more_", [])

    def test_a_pending_prefix_must_match_something_left(self, planted):
        pending = "planted.npz:y  old\nplanted.npz:more_  soon"
        assert "y matches no key" in problems(planted, squares, pending)[0]

    def test_a_missing_replay_fails_unless_pending(self, planted):
        assert "no replay" in problems(planted, None)[0]
        assert problems(planted, None, "other.npz  soon\nplanted.npz  soon") == []
        assert "no replay" in problems(planted, None, "planted.npz:more_  soon")[0]

    def test_a_replayed_file_must_not_be_pending(self, planted):
        pending = "planted.npz  old\nplanted.npz:more_  soon"
        assert "delete the line" in problems(planted, squares, pending)[0]

    def test_a_wrong_value_fails(self, planted):
        with pytest.raises(AssertionError, match="y: error 1.000e-08 over"):
            problems(planted, lambda golden: golden.check("y", golden.input("x") ** 2 + 1e-8))

    def test_a_claimed_fixture_must_be_opened(self, planted, monkeypatch):
        monkeypatch.setattr(f"{__name__}.claims", lambda replay: ("*.pkl",))
        (planted.folder / "net.pkl").touch()
        pending = "planted.npz:more_  soon"
        assert "net.pkl" in problems(planted, squares, pending)[0]
        assert planted.fixture("net.pkl").is_file()
        assert problems(planted, squares, pending) == []

    def test_a_pending_line_needs_a_reason(self):
        with pytest.raises(ValueError, match="gives no reason"):
            parse("planted.npz:more_")

    def test_a_folder_is_pending_as_a_whole(self):
        (line,) = parse("tiny/  soon")
        assert line.names("tiny/net/io.npz")
        assert not line.names("tiny.npz")
