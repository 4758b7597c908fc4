"""Text from a cache may hold any characters; a terminal must get no control characters."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text


def printable(text: str) -> str:
    """The text with every control character except the newline replaced, so that it can't control the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)


def passage(parts: Iterable[tuple[str, str, bool]]) -> Text:
    """Text in parts with one style each. Tokens that are to be predicted are in brackets, so that no colour is needed.

    Args:
        parts: text, style, and whether it is to be predicted.
    """
    shown, inside = Text(), False
    for text, style, predicted in parts:
        if predicted != inside:
            shown.append("⟦" if predicted else "⟧", "bold")
            inside = predicted
        shown.append(printable(text), style)
    if inside:
        shown.append("⟧", "bold")
    return shown
