"""Text that comes from a cache may hold anything; a terminal must get letters only."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text


def printable(text: str) -> str:
    """The text with every control character but the newline replaced, so that it can't steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)


def passage(parts: Iterable[tuple[str, str, bool]]) -> Text:
    """Text in stretches of a style each; what is to be predicted stands between brackets, so that no colour is needed.

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
