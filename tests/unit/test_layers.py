"""No module imports one that is built on it, also not inside a function or for its types only."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The packages, lowest first: each may use those before it.
PACKAGES = (
    "errors", "utils", "targets", "format", "stores", "signing", "data", "models", "engines", "cache", "stream",
    "losses", "students", "evaluate", "share", "exchange", "dump", "train",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    found = {}
    for path in (ROOT / "logitcache").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the library that a module imports, inside functions and under ``TYPE_CHECKING`` as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    found = set()
    for name in names:
        while name and name not in known:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {""}


def test_no_circle_of_modules() -> None:
    known = modules()
    needs = {name: imported(path, known) - {name} for name, path in known.items()}
    order = list(TopologicalSorter(needs).static_order())  # raises CycleError, naming the circle
    assert len(order) == len(known) > 100


def test_packages_use_only_those_below() -> None:
    known = modules()
    needs: dict[str, set[str]] = defaultdict(set)
    for name, path in known.items():
        if name != "logitcache":
            package = name.split(".")[1]
            needs[package] |= {other.split(".")[1] for other in imported(path, known) - {"logitcache"}} - {package}
    assert sorted(needs) == sorted(PACKAGES)
    upwards = [
        f"{package} -> {other}"
        for package in PACKAGES
        for other in needs[package]
        if PACKAGES.index(other) > PACKAGES.index(package)
    ]
    assert not upwards
