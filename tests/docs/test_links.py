"""What pages name is there: linked files outside the site, which Sphinx doesn't check, and tests and benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
OUTSIDE = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*OUTSIDE, REPO / "benchmarks" / "results" / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)")
NAMED = re.compile(r"\b(?:tests|benchmarks|examples)/[\w/]+\.py\b")
BENCHMARK = re.compile(r"python -m (benchmarks\.\w+)")


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_named_programs_exist() -> None:
    missing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        files = {*NAMED.findall(text), *(f"{name.replace('.', '/')}.py" for name in BENCHMARK.findall(text))}
        missing += [f"{page.name}: {name}" for name in sorted(files) if not (REPO / name).exists()]
    assert missing == []
