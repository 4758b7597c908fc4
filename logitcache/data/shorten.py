"""Show values of a row in messages: in one line, short, and without control characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_LONGEST = 60
_MOST = 20


def shorten(value: Any) -> str:
    """The value's text, or its beginning if it is long. Characters that aren't printable are replaced."""
    text = str(value)
    short = text[:_LONGEST] + ("…" if len(text) > _LONGEST else "")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in short)


def list_values(values: Iterable[Any]) -> str:
    """Values with commas between them; only the first ones if there are many."""
    every = list(values)
    more = f" and {len(every) - _MOST:,} more" if len(every) > _MOST else ""
    return ", ".join(map(shorten, every[:_MOST])) + more
