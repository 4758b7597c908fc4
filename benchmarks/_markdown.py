"""Tables in Markdown, as the files of ``benchmarks/results/`` hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are text already."""
    ruler = "|---" * len(header) + "|"
    return "\n".join([_line(header), ruler, *(_line(row) for row in rows)])


def write_tables(path: Path, tables: Iterable[str]) -> None:
    """The tables as a file, an empty line between two of them."""
    path.write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
