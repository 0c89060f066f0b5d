"""What is said of a file's values and of errors: short, in one line, and nothing that a terminal obeys."""

from typing import Any


def shown(value: Any, limit: int = 80) -> str:
    """A value of a file as part of a message: short, and without characters that a terminal obeys.

    Of a container only the type: to write out nested tuples can take for ever.
    """
    if isinstance(value, str):
        return ascii(value[:limit])[1:-1] + "..." * (len(value) > limit)
    return ascii(value) if type(value) in (int, float, bool, type(None)) else f"a {type(value).__name__}"


def line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
