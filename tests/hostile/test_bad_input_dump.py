"""Wrong settings or input of a dump give one clear error, and nothing that looks like a cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dump_tools import refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitcache.dump import config_path
from logitcache.errors import ConfigError, DataError, ModelError, NonFiniteLogitsError, StorageError

pytestmark = pytest.mark.hostile


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"data": ["nowhere.txt"]}, DataError, "nowhere.txt doesn't exist"),
        ({"data": ["nowhere/*.txt"]}, DataError, "no file matches nowhere"),
        ({"data": []}, ConfigError, "data"),
        ({"teacher": "./nowhere"}, ModelError, "doesn't exist"),
        ({"top_k": 0}, ConfigError, "top_k = 0"),
        ({"top_k": 49_153}, ConfigError, "49153 is more than the teacher's vocabulary of 49152"),
        ({"tail_samples": 64}, ConfigError, "tail_samples 64 must be below top_k 8"),
        ({"tail_samples": 8, "top_k": "all"}, ConfigError, "all ids are kept: nothing is left for tail_samples"),
        ({"candidates": 4}, ConfigError, "candidates 4 needs a reference"),
        ({"reference": "./nowhere", "candidates": 0}, ConfigError, "candidates 0 needs a reference"),
        ({"reference": "./nowhere", "candidates": 4}, ModelError, "the reference can't be used: .* doesn't exist"),
        ({"reference": "./nowhere", "candidates": 2, "tail_samples": 2}, ConfigError, "don't go together"),
        ({"max_length": 1_000_000}, ConfigError, "1000000 is more than the 2048 tokens that the teacher takes"),
        ({"overlap": 64}, ConfigError, "overlap 64 must be below max_length 64"),
        ({"preset": "smallest"}, ConfigError, "preset = 'smallest'"),
        ({"max_error": 100.0}, ConfigError, "max_error 100.0 nats must be"),
        ({"colour": "red"}, ConfigError, "colour is not a setting"),
        ({"device": "abacus"}, ConfigError, "'abacus' can't be used"),
        ({"rank": 3, "world_size": 2}, ConfigError, "rank 3 must be below world_size 2"),
        ({"out": Path("s3://bucket/cache")}, ConfigError, "logitcache push"),
        ({"finalize": True}, StorageError, "no unfinished dump"),
        ({"positions": "completion"}, DataError, "plain text has no completion"),
        ({"text_column": "body"}, DataError, "no column 'body'; the columns are text"),
    ],
)
def test_settings(dump: Any, tmp_path: Path, settings: dict[str, Any], error: type[Exception], match: str) -> None:
    refused(dump, **{"out": tmp_path / "out", "error": error, "match": match} | settings)
    assert not (tmp_path / "out").exists()


def test_not_a_model(dump: Any, text: Path, tmp_path: Path) -> None:
    refused(dump, tmp_path / "out", ModelError, "no config.json", teacher=str(tmp_path))
    refused(dump, tmp_path / "out", ModelError, "is not a model", teacher=str(text))
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"GGML")
    refused(dump, tmp_path / "out", ModelError, "not a GGUF file", teacher=str(fake))


def test_broken_model(dump: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
    for kept, match in (
        ({"config.json"}, "tokenizer"),
        ({"config.json", "tokenizer.json", "tokenizer_config.json"}, "no weights"),
    ):
        broken = tmp_path / f"broken-{len(kept)}"
        broken.mkdir()
        for name in kept:
            (broken / name).write_bytes((tiny_llama_dir / name).read_bytes())
        refused(dump, tmp_path / "out", ModelError, match, teacher=str(broken))
    (broken / "model.safetensors").write_bytes((tiny_llama_dir / "model.safetensors").read_bytes()[:1000])
    refused(dump, tmp_path / "out", ModelError, "model.safetensors is cut", teacher=str(broken))


@pytest.mark.parametrize("content", ["", "\n", "the"])
def test_empty_corpus(dump: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.txt").write_text(content)
    settings = {"data": [str(tmp_path / "empty.txt")], "end_of_text": "none"}
    refused(dump, tmp_path / "out", DataError, "corpus is empty: of 1 rows none", **settings)
    assert not (tmp_path / "out").exists()


def test_damaged_rows(dump: Any, tmp_path: Path) -> None:
    cases = {
        "a.jsonl": (b'{"text": "one two"}\n{"text": ', "line 2 is not valid JSON"),
        "b.jsonl": (b"[1, 2]\n", "line 1 is list; each line must be an object"),
        "c.jsonl": (b'{"text": "\xff\xfe"}\n', "line 1 is not UTF-8"),
        "d.jsonl": (b'{"body": "one two"}\n', "the columns are body"),
        "e.jsonl": (b'{"text": 7}\n', "column 'text' holds int"),
        "f.txt": (b"\xff\xfe\x00", "UTF-8"),
        "g.jsonl.gz": (b"not gzip", "g.jsonl.gz"),
        "h.jsonl.zst": (b"not zstd", "h.jsonl.zst"),
        "i.parquet": (b"PAR1", "Parquet"),
        "j.arrow": (b"ARROW1", "Arrow"),
        "k.jsonl": (b'{"input_ids": [1, 49152]}\n', "from 0 to 49151"),
        "l.jsonl": (b'{"input_ids": [1, 2], "labels": [1]}\n', "1 labels for 2 token ids"),
        "m.jsonl": (b'{"messages": [{"role": "user"}]}\n', "1 no assistant turn .*m.jsonl row 1"),
        "o.jsonl": (b'{"messages": [{"role": "assistant", "content": "a"}, {}]}\n', "message 2: has no role"),
        "n.jsonl": (b'{"prompt": "a", "completion": 3}\n', "must both be text"),
    }
    for name, (content, match) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(dump, tmp_path / "out", DataError, match, data=[str(tmp_path / name)])


def test_column_is_not_there(dump: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["x"], "body": ["some words here"]}), tmp_path / "rows.parquet")
    settings = {"data": [str(tmp_path / "rows.parquet")]}
    refused(dump, tmp_path / "out", DataError, "the columns are title, body", text_column="text", **settings)
    assert len(dump(text_column="body", **settings)) == 1


def test_non_finite_logits(dump: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    poison = tokenizer(" strong")["input_ids"][0]
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # untie
        model.config.tie_word_embeddings = False
        model.model.embed_tokens.weight[poison] = float("nan")
    model.save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    words = tmp_path / "strong.jsonl"
    lines = ("one two three", "be strong now", "four five")
    words.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    settings = {"teacher": str(teacher), "data": [str(words)], "shard_tokens": 4096}
    refused(
        dump,
        tmp_path / "out",
        NonFiniteLogitsError,
        r"not finite for .*strong.jsonl row 2 .* at position 0",
        **settings,
    )
    cache = dump(out=tmp_path / "skipped", skip_non_finite=True, **settings)
    # Attention multiplies NaN by zero, so the position before the broken word is lost too, and with it the sequence.
    assert [len(sequence.positions) for sequence in cache] == [3, 2]
    assert cache.manifest.provenance.settings["skipped_non_finite"] == 3


def test_command_line_says_it_in_one_line(tiny_llama_dir: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("logitcache")), "dump", "--teacher", str(tiny_llama_dir)]
    done = subprocess.run(
        [*command, "--data", str(tmp_path / "nowhere.txt"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nowhere.txt doesn't exist" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()
    assert not config_path(tmp_path / "out").exists()
