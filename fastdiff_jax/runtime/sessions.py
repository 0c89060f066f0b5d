"""Wall time of a run over its sessions, apart from metrics.jsonl, which must not depend on interruptions."""

from pathlib import Path

import jax

from fastdiff_jax.runtime import files

NAME = "sessions.json"


def record(workdir: Path, first: int, last: int, seconds: float) -> None:
    """Adds a session that trained steps first..last-1; a killed session leaves no record."""
    if jax.process_index() == 0 and last > first:
        known = files.read_json(Path(workdir) / NAME) or []
        files.write_json(Path(workdir) / NAME, [*known, {"from": first, "to": last, "seconds": seconds}])


def seconds(workdir: Path) -> float:
    """Training seconds of the recorded sessions, compilation included."""
    return sum(session["seconds"] for session in files.read_json(Path(workdir) / NAME) or [])
