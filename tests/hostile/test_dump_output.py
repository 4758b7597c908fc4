"""Problems with a dump's output, or with an unfinished dump, give one clear error, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from dump_tools import WORDS, fail_after, refused
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.dump import writer
from logitcache.errors import CacheNotFoundError, OutputExistsError, ResumeMismatchError, StorageError

pytestmark = pytest.mark.hostile


def test_output_exists(dump: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache = dump(out=out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match="already holds a finished cache"):
        dump(out=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert lc.open(out).digest == cache.digest
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    refused(dump, tmp_path / "other", OutputExistsError, "is no unfinished dump")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputExistsError, match="is a file"):
        dump(out=tmp_path / "file")


def test_a_worker_that_comes_after_the_end_gets_the_cache(
    dump: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    digest = dump(out=out, batch_tokens=None, rank=0, world_size=2).digest
    # Another device would have room for another batch; the first worker's choice held for all.
    monkeypatch.setattr(import_module("logitcache.dump.settings"), "automatic_batch_tokens", lambda *_: 4096)
    assert dump(out=out, batch_tokens=None, rank=1, world_size=2).digest == digest
    with pytest.raises(OutputExistsError, match="already holds a finished cache"):
        dump(out=out, batch_tokens=4096, rank=1, world_size=2)
    with pytest.raises(OutputExistsError, match="already holds a finished cache"):
        dump(out=out, batch_tokens=None, top_k=7, rank=1, world_size=2)


def test_resume_with_other_settings(dump: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, more = tmp_path / "out", tmp_path / "more.txt"
    more.write_text(WORDS)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish_shard", fail_after(2))
        with pytest.raises(StorageError, match="no more"):
            dump(out=out)
    for settings, match in (
        ({"top_k": 9}, "top_k was 8 and is 9"),
        ({"shard_format": "arrow", "statistics": True}, "shard_format was zarr and is arrow; statistics was False"),
        ({"preset": "tiny"}, "encoding was preset compact and is preset tiny"),
        ({"data": [str(text), str(more)]}, "the data had 1 inputs and has 2"),
        ({"end_of_text": "none"}, "end_of_text was auto and is none"),
        ({"template_args": {"a": 1}}, "template_args was empty and is a 1"),
        ({"card": {"licence": "CC0"}}, "card was empty and is licence CC0"),
    ):
        with pytest.raises(ResumeMismatchError, match=match):
            dump(out=out, **settings)
    text.write_text(WORDS.replace("strong", "weak"))
    with pytest.raises(ResumeMismatchError, match=r"the input .*words.txt has changed"):
        dump(out=out)
    text.write_text(WORDS)
    assert dump(out=out).digest == dump(out=tmp_path / "undisturbed").digest


def test_other_weights_on_resume(
    dump: Any, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "tiny"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    model.save_pretrained(teacher)
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(teacher)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish_shard", fail_after(1))
        with pytest.raises(StorageError):
            dump(teacher=str(teacher))
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(teacher)
    with pytest.raises(ResumeMismatchError, match="the teacher's weights have changed"):
        dump(teacher=str(teacher))


def test_unfinished_dump_is_no_cache(dump: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish_shard", fail_after(1))
        with pytest.raises(StorageError):
            dump()
    with pytest.raises(CacheNotFoundError):
        lc.open(tmp_path / "out")


def test_writer_thread_fails(dump: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = dump(out=tmp_path / "undisturbed").digest
    for name in ("publish_shard", "encode_shard", "write_descriptor"):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(writer, name, fail_after(1, getattr(writer, name)))
            refused(dump, out, StorageError, "no more")
        assert dump(out=out).digest == undisturbed


def test_scratch_that_other_workers_still_use(dump: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one worker removes the directory, another may create a claim in it."""
    real, refusals = shutil.rmtree, 2

    def rmtree(path: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal refusals
        if Path(path).name == ".dump" and refusals:
            refusals -= 1
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    cache = dump()
    assert refusals == 0
    assert not (tmp_path / "out" / ".dump").exists()
    assert lc.open(tmp_path / "out").digest == cache.digest


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


def test_disk_without_room(dump: Any, small_disk: Path, tmp_path: Path, text: Path) -> None:
    text.write_text(WORDS * 8)
    undisturbed = dump(out=tmp_path / "undisturbed").digest
    out = small_disk / "out"
    refused(dump, out, StorageError, "No space left on device; free some space")
    finished = len(list((out / "shards").glob("*.zip")))
    assert finished > 0
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert dump(out=out).digest == undisturbed


def test_read_only_output(dump: Any, tmp_path: Path) -> None:
    undisturbed = dump(out=tmp_path / "undisturbed").digest
    mount = tmp_path / "fixed"
    mount.mkdir()
    if os.geteuid() != 0:
        mount.chmod(0o555)
        refused(dump, mount / "out", StorageError, "Permission denied; check the permissions")
        return
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=64m", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs privileges")
    try:
        refused(dump, mount / "out", StorageError, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)
        assert dump(out=mount / "out").digest == undisturbed
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)
