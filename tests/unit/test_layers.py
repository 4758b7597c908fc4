"""Data flows one way: no part of the library imports one that is built on it, not even late."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[2] / "logitcache"


def imported(module: Path) -> set[str]:
    """The parts of the library that a module imports anywhere in it, inside functions as well."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "logitcache":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("logitcache."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("logitcache.")}
    return found


def test_no_part_reaches_back() -> None:
    needs: dict[str, set[str]] = defaultdict(set)
    for module in LIBRARY.rglob("*.py"):
        part = module.relative_to(LIBRARY).parts[0].removesuffix(".py")
        if part != "__init__":
            needs[part] |= imported(module) - {part}
    order = list(TopologicalSorter(needs).static_order())  # raises CycleError, naming the circle
    assert order.index("cache") < order.index("share") < order.index("training")
    assert not any("cli" in needed for needed in needs.values())
