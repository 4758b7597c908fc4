"""Whatever is wrong with a dump's input or output gets one clear error, and nothing that looks finished."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.dump import config_path, writer
from logitcache.errors import (
    CacheNotFoundError,
    ConfigError,
    DataError,
    ModelError,
    NonFiniteLogitsError,
    OutputExistsError,
    ResumeMismatchError,
    StorageError,
)

pytestmark = pytest.mark.hostile

WORDS = "the state of the union is strong and its people are free " * 20


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture
def run(tiny_llama_dir: Path, text: Path, tmp_path: Path) -> Any:
    def call(**settings: Any) -> lc.Cache:
        return lc.dump(
            **{
                "teacher": str(tiny_llama_dir),
                "data": [str(text)],
                "out": tmp_path / "out",
                "top_k": 8,
                "max_length": 64,
                "shard_tokens": 64,
                "min_mass": 0.0,
            }
            | settings
        )

    return call


def refused(run: Any, out: Path, error: type[Exception], match: str, **settings: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        run(out=out, **settings)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (out / "manifest.json").exists()
    with pytest.raises(lc.LogitCacheError):
        lc.open(out)


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
def test_settings(run: Any, tmp_path: Path, settings: dict[str, Any], error: type[Exception], match: str) -> None:
    refused(run, **{"out": tmp_path / "out", "error": error, "match": match} | settings)
    assert not (tmp_path / "out").exists()


def test_not_a_model(run: Any, text: Path, tmp_path: Path) -> None:
    refused(run, tmp_path / "out", ModelError, "no config.json", teacher=str(tmp_path))
    refused(run, tmp_path / "out", ModelError, "is not a model", teacher=str(text))
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"GGML")
    refused(run, tmp_path / "out", ModelError, "not a GGUF file", teacher=str(fake))


def test_broken_model(run: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
    for kept, match in (
        ({"config.json"}, "tokenizer"),
        ({"config.json", "tokenizer.json", "tokenizer_config.json"}, "no weights"),
    ):
        broken = tmp_path / f"broken-{len(kept)}"
        broken.mkdir()
        for name in kept:
            (broken / name).write_bytes((tiny_llama_dir / name).read_bytes())
        refused(run, tmp_path / "out", ModelError, match, teacher=str(broken))
    (broken / "model.safetensors").write_bytes((tiny_llama_dir / "model.safetensors").read_bytes()[:1000])
    refused(run, tmp_path / "out", ModelError, "weights can't be loaded", teacher=str(broken))


@pytest.mark.parametrize("content", ["", "\n", "the"])
def test_empty_corpus(run: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.txt").write_text(content)
    refused(run, tmp_path / "out", DataError, "corpus is empty", data=[str(tmp_path / "empty.txt")])
    assert not (tmp_path / "out").exists()


def test_damaged_rows(run: Any, tmp_path: Path) -> None:
    cases = {
        "a.jsonl": (b'{"text": "one two"}\n{"text": ', "line 2 is not valid JSON"),
        "b.jsonl": (b"[1, 2]\n", "line 1 is list; each line must be an object"),
        "c.jsonl": (b'{"text": "\xff\xfe"}\n', "line 1 is not valid JSON"),
        "d.jsonl": (b'{"body": "one two"}\n', "the columns are body"),
        "e.jsonl": (b'{"text": 7}\n', "column 'text' holds int"),
        "f.txt": (b"\xff\xfe\x00", "UTF-8"),
        "g.jsonl.gz": (b"not gzip", "g.jsonl.gz"),
        "h.jsonl.zst": (b"not zstd", "h.jsonl.zst"),
        "i.parquet": (b"PAR1", "Parquet"),
        "j.arrow": (b"ARROW1", "Arrow"),
        "k.jsonl": (b'{"input_ids": [1, 49152]}\n', "from 0 to 49151"),
        "l.jsonl": (b'{"input_ids": [1, 2], "labels": [1]}\n', "1 labels for 2 token ids"),
        "m.jsonl": (b'{"messages": [{"role": "user"}]}\n', "chat template can't render"),
        "n.jsonl": (b'{"prompt": "a", "completion": 3}\n', "must both be text"),
    }
    for name, (content, match) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(run, tmp_path / "out", DataError, match, data=[str(tmp_path / name)])


def test_column_is_not_there(run: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["x"], "body": ["some words here"]}), tmp_path / "rows.parquet")
    settings = {"data": [str(tmp_path / "rows.parquet")]}
    refused(run, tmp_path / "out", DataError, "the columns are title, body", text_column="text", **settings)
    assert len(run(text_column="body", **settings)) == 1


def test_a_worker_that_comes_after_the_end_gets_the_cache(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    digest = run(out=out, batch_tokens=None, rank=0, world_size=2).digest
    # Another device would have room for another batch; the first worker's choice held for all.
    monkeypatch.setattr(import_module("logitcache.dump.settings"), "automatic_batch_tokens", lambda *_: 4096)
    assert run(out=out, batch_tokens=None, rank=1, world_size=2).digest == digest
    with pytest.raises(OutputExistsError, match="already holds a finished cache"):
        run(out=out, batch_tokens=4096, rank=1, world_size=2)
    with pytest.raises(OutputExistsError, match="already holds a finished cache"):
        run(out=out, batch_tokens=None, top_k=7, rank=1, world_size=2)


def test_output_exists(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache = run(out=out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match="already holds a finished cache"):
        run(out=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert lc.open(out).digest == cache.digest
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    refused(run, tmp_path / "other", OutputExistsError, "is no unfinished dump")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputExistsError, match="is a file"):
        run(out=tmp_path / "file")


def test_resume_with_other_settings(run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish_shard", fail_after(2))
        with pytest.raises(StorageError, match="no more"):
            run(out=out)
    for settings, match in (
        ({"top_k": 9}, "top_k was 8 and is 9"),
        ({"shard_format": "arrow", "statistics": True}, "shard_format was zarr and is arrow; statistics was False"),
        ({"preset": "tiny"}, "encoding was preset compact and is preset tiny"),
        ({"data": [str(text), str(text)]}, "the data had 1 inputs and has 2"),
        ({"card": {"licence": "CC0"}}, "card was empty and is licence CC0"),
    ):
        with pytest.raises(ResumeMismatchError, match=match):
            run(out=out, **settings)
    text.write_text(WORDS.replace("strong", "weak"))
    with pytest.raises(ResumeMismatchError, match=r"the input .*words.txt has changed"):
        run(out=out)
    text.write_text(WORDS)
    assert run(out=out).digest == run(out=tmp_path / "undisturbed").digest


def test_other_weights_on_resume(
    run: Any, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "tiny"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    model.save_pretrained(teacher)
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(teacher)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish_shard", fail_after(1))
        with pytest.raises(StorageError):
            run(teacher=str(teacher))
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(teacher)
    with pytest.raises(ResumeMismatchError, match="the teacher's weights have changed"):
        run(teacher=str(teacher))


def test_writer_thread_fails(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run(out=tmp_path / "undisturbed").digest
    for name in ("publish_shard", "encode_shard", "write_descriptor"):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(writer, name, fail_after(1, getattr(writer, name)))
            refused(run, out, StorageError, "no more")
        assert run(out=out).digest == undisturbed


def test_scratch_that_others_still_look_into(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one worker clears up, another may create a claim: the directory isn't empty after all."""
    real, refusals = shutil.rmtree, 2

    def rmtree(path: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal refusals
        if Path(path).name == ".dump" and refusals:
            refusals -= 1
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    cache = run()
    assert refusals == 0
    assert not (tmp_path / "out" / ".dump").exists()
    assert lc.open(tmp_path / "out").digest == cache.digest


def fail_after(calls: int, real: Any = writer.publish_shard) -> Any:
    made = 0

    def fake(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        if made > calls:
            raise StorageError("no more")
        return real(*args, **kwargs)

    return fake


def test_non_finite_logits(run: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
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
        run, tmp_path / "out", NonFiniteLogitsError, r"not finite for .*strong.jsonl row 2 .* at position 0", **settings
    )
    cache = run(out=tmp_path / "skipped", skip_non_finite=True, **settings)
    # Attention multiplies NaN by zero, so the position before the broken word is lost too, and with it the sequence.
    assert [len(sequence.positions) for sequence in cache] == [2, 1]
    assert cache.manifest.provenance.settings["skipped_non_finite"] == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield mount
    # Lazily: a cache that a test has opened keeps its table mapped until it is collected.
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_disk_without_room(run: Any, small_disk: Path, tmp_path: Path, text: Path) -> None:
    text.write_text(WORDS * 8)
    undisturbed = run(out=tmp_path / "undisturbed").digest
    out = small_disk / "out"
    refused(run, out, StorageError, "No space left on device; make room")
    finished = len(list((out / "shards").glob("*.zip")))
    assert finished > 0
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert run(out=out).digest == undisturbed


def test_read_only_output(run: Any, tmp_path: Path) -> None:
    undisturbed = run(out=tmp_path / "undisturbed").digest
    mount = tmp_path / "fixed"
    mount.mkdir()
    if os.geteuid() != 0:
        mount.chmod(0o555)
        refused(run, mount / "out", StorageError, "Permission denied; check the permissions")
        return
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=64m", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs privileges")
    try:
        refused(run, mount / "out", StorageError, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)
        assert run(out=mount / "out").digest == undisturbed
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


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


def test_unfinished_dump_is_no_cache(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish_shard", fail_after(1))
        with pytest.raises(StorageError):
            run()
    with pytest.raises(CacheNotFoundError):
        lc.open(tmp_path / "out")
