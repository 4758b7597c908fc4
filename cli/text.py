"""Text that comes from a cache may hold anything; a terminal must get letters only."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every control character but the newline replaced, so that it can't steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)
