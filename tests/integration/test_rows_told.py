"""Counts of rows are shown everywhere: preview, dry run, dump, JSON, manifest, info and peek."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import logitcache as lc

pytestmark = pytest.mark.integration

ROWS = [
    {"messages": [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris."}]},
    {"messages": [{"role": "user", "content": "A question without an answer"}]},
    {"text": "A plain document. " * 40},
    {"messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two " * 60}]},
]
LEFT_OUT = "no assistant turn (the roles are: user)"


def logitcache(*arguments: str | Path) -> str:
    command = [str(Path(sys.executable).with_name("logitcache")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def asked(rows: Path, tiny_llama_dir: Path) -> list[str]:
    return ["dump", "--teacher", str(tiny_llama_dir), "--data", str(rows), "--max-length", "64", "--min-mass", "0"]


def test_preview_marks_the_targets_and_loads_no_weights(asked: list[str], tiny_llama_dir: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "no-weights"
    teacher.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (teacher / name).write_bytes((tiny_llama_dir / name).read_bytes())
    (teacher / "model.safetensors").write_bytes(b"no weights at all")
    shown = logitcache(*[str(teacher) if part == str(tiny_llama_dir) else part for part in asked], "--preview", "2")
    assert "⟦Paris.<|im_end|>⟧" in shown
    assert "rows.jsonl row 3" not in shown
    assert f"left out: {LEFT_OUT} (1 row; the first is" in shown


def test_preview_as_json(asked: list[str]) -> None:
    shown: dict[str, Any] = json.loads(logitcache(*asked, "--preview", "4", "--json"))
    first = shown["sequences"][0]
    assert [text for text, predicted in first["parts"] if predicted] == ["Paris.<|im_end|>"]
    assert sum(first["targets"] for first in shown["sequences"]) > 64
    assert shown["rows"]["read"] == 4


def test_counts_are_the_same_everywhere(asked: list[str], tmp_path: Path) -> None:
    out = tmp_path / "cache"
    printed = logitcache(*asked, "--out", out)
    assert "warning: 1 of 4 rows: no assistant turn" in printed
    assert "rows: 4 read, 1 left out, 2 longer than the limit" in printed
    assert "too long: truncated (1 row, " in printed
    assert "too long: split into several sequences (documents) (1 row; the first is rows.jsonl row 3)" in printed
    counts = lc.open(out).manifest.provenance.settings["rows"]
    assert isinstance(counts, dict)
    assert counts["left_out"] == {LEFT_OUT: {"rows": 1, "first": "rows.jsonl row 2"}}
    again = json.loads(_json_of(logitcache(*asked, "--out", tmp_path / "again", "--json")))
    assert again["rows"] == counts
    planned = json.loads(_json_of(logitcache(*asked, "--out", tmp_path / "dry", "--dry-run", "--json")))
    assert planned["tally"] == counts
    assert (planned["rows"], planned["empty_rows"]) == (4, 1)
    assert "rows: 4 read, 1 left out" in logitcache("info", out)
    assert lc.open(out).manifest.provenance.settings["end_of_text"] == "<|endoftext|>"


def _json_of(text: str) -> str:
    return text[text.index("{") : text.rindex("}") + 1]


def test_peek_marks_the_targets(asked: list[str], tmp_path: Path) -> None:
    logitcache(*asked, "--out", tmp_path / "cache")
    shown = logitcache("peek", tmp_path / "cache", "0", "--tokens", "0:40")
    assert "⟦Paris.<|im_end|>⟧" in shown


def test_template_arguments_reach_the_template_and_the_manifest(asked: list[str], tmp_path: Path) -> None:
    template = tmp_path / "loud.jinja"
    template.write_text(
        "{% set mark = '!' if loud else '' %}"
        "{% for m in messages %}{{ m.role + mark + '\\n' + m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant' + mark + '\\n' }}{% endif %}"
    )
    extra = ["--chat-template", str(template), "--template-args", "loud=true"]
    assert "assistant!\n⟦Paris.<|im_end|>⟧" in logitcache(*asked, *extra, "--preview", "1")
    logitcache(*asked, *extra, "--out", tmp_path / "cache")
    cache = lc.open(tmp_path / "cache")
    assert cache.manifest.provenance.settings["template_args"] == {"loud": True}
    assert cache.load_tokenizer().chat_template == template.read_text()
