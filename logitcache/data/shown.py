"""Values of a row in messages: one line, short, and without control characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_LONGEST = 60
_MOST = 20


def shown(value: Any) -> str:
    """The value's text, its beginning if it is long; what isn't printable is replaced."""
    text = str(value)
    short = text[:_LONGEST] + ("…" if len(text) > _LONGEST else "")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in short)


def listed(values: Iterable[Any]) -> str:
    """Values with commas between them, the first ones if there are many."""
    every = list(values)
    more = f" and {len(every) - _MOST:,} more" if len(every) > _MOST else ""
    return ", ".join(map(shown, every[:_MOST])) + more
