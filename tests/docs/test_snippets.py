"""Run every code block of the docs. A page is a session: its blocks run in order, in a folder of their own.

``bash`` blocks run in a shell, ``python`` blocks share one namespace, and a block with ``title="NAME"`` is written to
that file first. A block under ``<!-- not run: why -->`` is skipped. A block under ``<!-- prepared -->`` needs no other
block: it runs once, and each page that has the same block gets a copy of what it made. The folder has ``examples/`` and
``.models/`` of the repository, so the commands are those that a reader would type at its root.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from logitcache.losses import registry

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted([REPO / "README.md", REPO / "CONTRIBUTING.md", *(REPO / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run: [^\n]+|prepared) -->\n+)?(?P<indent> *)```(?P<language>\w+)(?P<info>[^\n]*)\n"
    r"(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
RUN = {"bash", "python"}
LINKS = ("examples", ".models")


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    code: str
    line: int
    prepared: bool


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["info"])
        mark = match["mark"] or ""
        if mark.startswith("not run") or not (match["language"] in RUN or title):
            continue
        indent = len(match["indent"])
        code = "\n".join(line[indent:] for line in match["code"].splitlines()) + "\n"
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], title[1] if title else None, code, line, mark == "prepared"))
    return found


def link_inputs(folder: Path, teacher: Path) -> None:
    """What a reader has at the root of a clone, after ``make install teacher``."""
    (folder / "examples").symlink_to(REPO / "examples")
    (folder / ".models").mkdir()
    (folder / ".models" / "SmolLM2-135M-Instruct").symlink_to(teacher.resolve())


@pytest.fixture(scope="session")
def prepare(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Block, Path, Path], None]:
    """Give a folder what a prepared block makes. The block runs once for all pages, and for all of xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prepared"
    shared.mkdir(exist_ok=True)

    def copy(block: Block, page: Path, folder: Path) -> None:
        made = shared / hashlib.sha256(block.code.encode()).hexdigest()[:16]
        with FileLock(f"{made}.lock"):
            if not made.exists():
                work = made.with_suffix(".part")
                work.mkdir()
                link_inputs(work, smollm2_dir)
                run_bash(block, page, work)
                work.rename(made)
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns(*LINKS), dirs_exist_ok=True)

    return copy


@pytest.mark.integration
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_of(page)], ids=lambda page: str(page.relative_to(REPO))
)
def test_page_runs(
    page: Path,
    smollm2_dir: Path,
    tmp_path: Path,
    prepare: Callable[[Block, Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link_inputs(tmp_path, smollm2_dir)
    monkeypatch.chdir(tmp_path)
    # A loss that a page registers is gone after the page: other tests count the losses that there are.
    monkeypatch.setattr(registry._LOSSES, "_known", dict(registry._LOSSES._known))
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks_of(page):
        if block.title:
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
        elif block.prepared:
            prepare(block, page, tmp_path)
        elif block.language == "bash":
            run_bash(block, page, tmp_path)
        else:
            code = "\n" * block.line + block.code
            # As a reader would run it: this file's own `from __future__` doesn't reach into the page.
            exec(compile(code, str(page), "exec", dont_inherit=True), namespace)


def test_every_mark_is_understood() -> None:
    """A mark that the pattern above misses would let a block run, or be skipped, unnoticed."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marks = re.findall(r"^<!-- (?:not run|prepared)\b", text, re.MULTILINE)
        assert len(marks) == sum(match["mark"] is not None for match in BLOCK.finditer(text)), page


def run_bash(block: Block, page: Path, folder: Path) -> None:
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env={**os.environ, "PATH": search_path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page}:{block.line} failed:\n{block.code}\n{done.stdout}\n{done.stderr}"
