"""Turn an exception of another library into one line."""

from __future__ import annotations

#: Largest number of characters: a message of logitcache has one or two lines.
MAX_LENGTH = 300


def reason(error: BaseException) -> str:
    """The first line of an exception that has text, and the next one if the first ends with a colon.

    Never empty: an exception without text gives the name of its class. At most ``MAX_LENGTH`` characters.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:MAX_LENGTH]
