"""Files and functions stay short enough to be read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("logitcache", "cli") for path in (ROOT / folder).rglob("*.py"))
MAX_FILE_LINES = 300
#: Lines of a function without its docstring. The aim is about 40; this is the smallest limit that holds today.
#: Lower it when the longest function gets shorter, and never raise it.
MAX_FUNCTION_LINES = 50


def function_lengths(source: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function and method, from ``def`` to its end, without its docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                docstring = node.body[0]
                assert docstring.end_lineno is not None
                lines -= docstring.end_lineno - docstring.lineno + 1
            yield node.name, lines


def too_long(path: Path) -> list[str]:
    """One line for the file, and one for each of its functions, that is over its limit."""
    source, where = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
    found = [
        f"{where}: {name} has {lines} lines" for name, lines in function_lengths(source) if lines > MAX_FUNCTION_LINES
    ]
    lines = len(source.splitlines())
    return [f"{where} has {lines} lines"] * (lines > MAX_FILE_LINES) + found


def test_the_files_are_found() -> None:
    assert len(FILES) > 150
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"logitcache", "cli"}


def test_files_and_functions_are_short() -> None:
    assert [line for path in FILES for line in too_long(path)] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    return 1\n", [("f", 2)]),
        ('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n', [("f", 2)]),
        ("class C:\n    @property\n    def f(self):\n        return 1\n", [("f", 2)]),
        ("async def f(\n    a,\n):\n    def g():\n        return a\n    return g\n", [("f", 6), ("g", 2)]),
    ],
)
def test_lines_are_counted_without_the_docstring(source: str, expected: list[tuple[str, int]]) -> None:
    assert list(function_lengths(source)) == expected
