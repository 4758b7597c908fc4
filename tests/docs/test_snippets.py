"""Run every code block of the docs. A page is a session: its blocks run in order, in a folder of their own.

``bash`` blocks run in a shell, ``python`` blocks share one namespace, and a block with ``title="NAME"`` is written to
that file first. A block under ``<!-- not run: why -->`` is skipped. The folder has ``examples/`` and ``.models/`` of
the repository, so the commands are those that a reader would type at its root.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted([REPO / "README.md", *(REPO / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"^(?P<skip><!-- not run:[^\n]*-->\n+)?(?P<indent> *)```(?P<language>\w+)(?P<info>[^\n]*)\n"
    r"(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
RUN = {"bash", "python"}


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    code: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["info"])
        if match["skip"] or not (match["language"] in RUN or title):
            continue
        indent = len(match["indent"])
        code = "\n".join(line[indent:] for line in match["code"].splitlines()) + "\n"
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], title[1] if title else None, code, line))
    return found


@pytest.mark.integration
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_of(page)], ids=lambda page: str(page.relative_to(REPO))
)
def test_page_runs(page: Path, smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(REPO / "examples")
    (tmp_path / ".models").mkdir()
    (tmp_path / ".models" / "SmolLM2-135M-Instruct").symlink_to(smollm2_dir.resolve())
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks_of(page):
        if block.title:
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "bash":
            run_bash(block, page, tmp_path)
        else:
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)


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
