"""Wall time of a run over its sessions, apart from metrics.jsonl, which must not depend on interruptions."""

from pathlib import Path

import jax

from fastdiff_jax.runtime import files

NAME = "sessions.json"


def record(workdir: Path, first: int, last: int, seconds: float) -> None:
    """Notes that the session that began with step `first` has trained steps first..last-1 so far.

    It is called at every checkpoint: of a killed session, what came after its last one is not counted.
    """
    if jax.process_index() == 0 and last > first:
        known = files.read_json(Path(workdir) / NAME) or []
        others = [session for session in known if session["from"] != first]
        files.write_json(Path(workdir) / NAME, [*others, {"from": first, "to": last, "seconds": seconds}])


def seconds(workdir: Path) -> float:
    """Training seconds of the recorded sessions, compilation included."""
    return sum(session["seconds"] for session in files.read_json(Path(workdir) / NAME) or [])
