"""`info`, `verify` and `peek`: what people and programs see."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_builder import build_cache, make_provenance
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.cache.tokenizer import tokenizer_digest, tokenizer_files
from logitcache.cli import info as info_module
from logitcache.cli import peek as peek_module
from logitcache.cli import verify as verify_module
from logitcache.cli.common import read_assignments
from logitcache.cli.main import run
from logitcache.format.arrays import ShardArrays, sequence_digest
from logitcache.format.encoding import Encoding
from logitcache.format.formats import encode_shard
from logitcache.format.manifest import Card, Teacher

TEXT = "The state of the Union is strong.\nLet us go on – together."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    build_cache(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def worded(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of one real sentence, by a real (random) model, without targets at two positions."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])
    mask = np.ones(len(ids), bool)
    mask[[3, 4, -1]] = False
    with torch.no_grad():
        targets = lc.TopK.from_logits(model(ids[None]).logits[0][torch.from_numpy(mask)], 8)
    tokens = ids.numpy().astype(np.uint32)
    arrays = ShardArrays(
        token_ids_L=tokens,
        offsets_S1=np.array([0, len(tokens)]),
        sequence_digests_S16=np.frombuffer(sequence_digest(tokens, mask), np.uint8).reshape(1, 16),
        target_mask_L=mask,
        topk_ids_NK=targets.ids.numpy().astype(np.uint32),
        topk_logprobs_NK=targets.logprobs.numpy(),
        residual_logprob_N=targets.residual_logprob.numpy(),
        vocab_size=targets.vocab_size,
    )
    path: Path = tmp_path_factory.mktemp("worded") / "cache"
    entry = publish_shard(path, encode_shard(arrays, Encoding(), "zarr"), arrays, "zarr")
    provenance = make_provenance(
        top_k=8, vocab_size=targets.vocab_size, tokenizer_digest=tokenizer_digest(tokenizer), settings={"overlap": 3}
    )
    files = tokenizer_files(tokenizer)
    finalize_cache(path, [entry], provenance, Encoding(), "zarr", files, card=Card(licence="CC0-1.0", notes="[bold]x"))
    return path


class Shell:
    """Runs the program in this process; keeps what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.out = self.err = ""
        self.width(80)

    def width(self, columns: int) -> None:
        for module in (info_module, peek_module, verify_module):
            self.monkeypatch.setattr(module, "console", Console(width=columns, color_system=None))

    def __call__(self, *arguments: object) -> int:
        self.monkeypatch.setattr("sys.argv", ["logitcache", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run()
        self.out, self.err = self.capsys.readouterr()
        return int(ended.value.code or 0)

    def json(self, *arguments: object, status: int = 0) -> Any:
        assert self(*arguments, "--json") == status
        return json.loads(self.out)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def test_info_shows_what_matters(shell: Shell, root: Path) -> None:
    assert shell("info", root) == 0
    cache = lc.open(root)
    assert cache.digest in shell.out
    for part in (
        "org/teacher",
        "top 5 of 300",
        "12 in 3 zarr shards",
        "1/64",
        "CC0-1.0",
        "float32 on transformers",
        "bytes per token",
        "top-k mass",
    ):
        assert part in shell.out
    for part in ("bytes per token", "top-k mass", "mean by rank"):
        assert part in shell.out
    assert max(map(len, shell.out.splitlines())) <= 80


@pytest.mark.parametrize("head_dtype", [None, "float32"])
def test_info_names_the_dtype_of_the_logits(shell: Shell, tmp_path: Path, head_dtype: str | None) -> None:
    teacher = Teacher(
        name="t", dtype="bfloat16", head_dtype=head_dtype, engine="e", weights_digest="sha256:" + "0" * 64
    )
    build_cache(tmp_path / "cache", teacher=teacher)
    assert shell("info", tmp_path / "cache") == 0
    expected = "bfloat16, logits in float32, on e" if head_dtype else "bfloat16 on e"
    assert re.search(rf"ran in +{expected}\s", shell.out)


def test_info_as_json_holds_the_manifest(shell: Shell, root: Path) -> None:
    shown = shell.json("info", root)
    assert shown["manifest"] == json.loads((root / "manifest.json").read_bytes())
    assert shown["digest"] == lc.open(root).digest
    assert shown["bytes_per_token"] == pytest.approx(
        sum(path.stat().st_size for path in (root / "shards").iterdir()) / shown["manifest"]["totals"]["tokens"]
    )


def test_info_takes_markup_for_text(shell: Shell, worded: Path) -> None:
    assert shell("info", worded) == 0
    assert "[bold]x" in shell.out


def test_info_of_an_empty_cache(shell: Shell, tmp_path: Path) -> None:
    build_cache(tmp_path / "empty", "arrow", [])
    assert shell("info", tmp_path / "empty") == 0
    assert shell.json("info", tmp_path / "empty")["bytes_per_token"] is None


def test_verify_of_a_sound_cache(shell: Shell, root: Path) -> None:
    assert shell("verify", root, "--deep", "--workers", 1) == 0
    assert "no faults" in shell.out
    shown = shell.json("verify", root)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert (shown["ok"], shown["faults"], shown["files"], shown["bytes"]) == (True, [], 8, size)


def test_verify_names_every_fault_and_exits_with_1(shell: Shell, root: Path) -> None:
    shards = [entry.path for entry in lc.open(root).shards]
    (root / shards[0]).unlink()
    (root / shards[2]).write_bytes(b"x")
    (root / "stray[red]\x1b[2J").write_text("x")
    assert shell("verify", root) == 1
    assert shards[0] in shell.out
    assert shards[2] in shell.out
    assert "stray[red]" in shell.out
    assert "3 faults" in shell.out
    assert "\x1b[2J" not in shell.out
    shown = shell.json("verify", root, status=1)
    assert [fault["kind"] for fault in shown["faults"]] == ["extra", "missing", "altered"]


@pytest.mark.parametrize("command", ["info", "verify", "peek"])
def test_a_place_without_a_cache_is_one_line(shell: Shell, tmp_path: Path, command: str) -> None:
    assert shell(command, tmp_path / "none") == 1
    assert shell.out == ""
    assert shell.err == f"error: {tmp_path / 'none'} does not exist\n"


def test_peek_as_json_says_what_the_teacher_said(shell: Shell, worded: Path) -> None:
    shown = shell.json("peek", worded, "0", "--tokens", ":", "--top", "3")
    item = lc.open(worded)[0]
    assert "".join(row["token"] for row in shown["rows"][:9]) == "The state of the Union is strong.\n"
    assert [row["token_id"] for row in shown["rows"]] == item.token_ids.tolist()
    without = [row["position"] for row in shown["rows"] if row["predicted"] is None]
    assert without == [0, 4, 5]
    for target, position in enumerate(item.positions.tolist()):
        predicted = shown["rows"][position + 1]["predicted"]
        ids, probabilities = item.targets.ids[target].tolist(), item.targets.logprobs[target].exp().tolist()
        assert [candidate["token_id"] for candidate in predicted["candidates"]] == ids[:3]
        assert [candidate["probability"] for candidate in predicted["candidates"]] == pytest.approx(probabilities[:3])
        came = int(item.labels[target])
        assert predicted["rank"] == (ids.index(came) + 1 if came in ids else None)
        assert predicted["residual"] == pytest.approx(float(item.targets.residual_logprob[target].exp()))


def test_peek_fits_80_columns_without_colour(shell: Shell, worded: Path) -> None:
    assert shell("peek", worded) == 0
    lines = shell.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in shell.out
    assert "\x1b" not in shell.out
    assert "The⟦ state of the⟧ Union" in shell.out  # what is to be predicted
    assert "The state of the Union is strong." in re.sub("[⟦⟧]", "", shell.out)
    assert re.search(r"^ +3 ·the +‼ +rest +– \S", shell.out, re.MULTILINE)
    assert "no target" in shell.out
    assert sum(line.startswith(" ") and "⏎" in line for line in lines) >= 1


def test_peek_marks_what_came(shell: Shell, tmp_path: Path) -> None:
    build_cache(tmp_path / "cache", "zarr", tokenizer={})
    item = lc.open(tmp_path / "cache")[3]
    assert shell("peek", tmp_path / "cache", 3, "--top", 300) == 0
    hits = sum(label in ids for label, ids in zip(item.labels.tolist(), item.targets.ids.tolist(), strict=True))
    rows = [line for line in shell.out.splitlines() if re.match(r" *\d+ \d+ ", line)]
    assert sum("[" in row for row in rows) == hits
    assert len(rows) == len(item)


def test_peek_shows_colour_on_a_terminal(worded: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peek_module, "console", Console(width=80, force_terminal=True, color_system="256"))
    assert shell("peek", worded) == 0
    assert "\x1b[1;31m" in shell.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["99"], "there is no sequence 99"),
        (["0", "--tokens", "5"], "write the first token and the end as A:B"),
        (["0", "--tokens", "a:b"], "write the first token and the end as A:B"),
        (["0", "--tokens", "900:950"], "selects nothing of a sequence of"),
    ],
)
def test_peek_explains_what_it_cannot_show(shell: Shell, worded: Path, arguments: list[str], message: str) -> None:
    assert shell("peek", worded, *arguments) == 1
    assert message in shell.err
    assert len(shell.err.splitlines()) <= 2


def test_peek_of_an_empty_sequence(shell: Shell, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    build_cache(root, tokenizer={})
    assert len(lc.open(root)[1]) == 0
    assert shell.json("peek", root, 1)["rows"] == []
    assert shell("peek", root, 1) == 0
    assert "0 targets" in shell.out


def test_control_characters_do_not_reach_the_terminal(shell: Shell, tmp_path: Path) -> None:
    build_cache(tmp_path / "cache", settings={"x\x1b[2J": "y\x07\x9b31m"})
    assert shell("info", tmp_path / "cache") == 0
    assert not set(shell.out) & {"\x1b", "\x07", "\x9b"}


def test_control_characters_of_an_error_do_not_reach_the_terminal(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("logitcache")), "info", str(tmp_path / "a\x1b[2J\x07\x9b31m")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error:")
    assert not set(done.stderr) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.parametrize("value", ["date=2026-13-01", "x={a: [", "noequals", "=3"])
def test_arguments_that_are_no_values_are_one_line(value: str) -> None:
    with pytest.raises(lc.LogitCacheError) as refused:
        read_assignments("--template-args", [value])
    assert repr(value) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_dates_among_arguments_stay_text() -> None:
    assert read_assignments("--template-args", ["date=2026-01-31", "on=false", "n=3"]) == {
        "date": "2026-01-31",
        "on": False,
        "n": 3,
    }
