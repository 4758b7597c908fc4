"""Writing a cache: it is complete or absent, never overwrites anything, and is equal for equal input."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cache_builder import FORMATS, SHARDS, build_cache, make_arrays, make_provenance, publish
from share_tools import files_of

import logitcache as lc
from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.cache.verify import verify_cache
from logitcache.errors import (
    CacheNotFoundError,
    ConfigError,
    CorruptCacheError,
    OutputExistsError,
    StorageError,
)
from logitcache.format.encoding import Encoding
from logitcache.format.formats import encode_shard
from logitcache.utils import atomic

TOKENIZER_FILES = {"tokenizer.json": b'{"a": 1}', "tokenizer_config.json": b'{"b": 2}'}


@pytest.mark.parametrize("shard_format", FORMATS)
def test_equal_input_gives_equal_directories(tmp_path: Path, shard_format: Any) -> None:
    digests = {build_cache(tmp_path / name, shard_format, SHARDS) for name in ("one", "two")}
    assert len(digests) == 1
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_finishing_twice_changes_nothing(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache")
    before = files_of(tmp_path / "cache")
    build_cache(tmp_path / "cache")
    assert files_of(tmp_path / "cache") == before


def test_a_finished_cache_is_never_overwritten(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache")
    before = files_of(tmp_path / "cache")
    with pytest.raises(OutputExistsError, match="already holds another cache"):
        build_cache(tmp_path / "cache", positions="completion")
    assert files_of(tmp_path / "cache") == before


def test_equal_shards_are_one_file(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache", "zarr", [SHARDS[0], SHARDS[2], SHARDS[0]])
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 2
    cache = lc.open(tmp_path / "cache")
    assert [item.digest for item in cache[:4]] == [item.digest for item in cache[5:]]
    assert verify_cache(tmp_path / "cache", deep=True).ok


def test_publishing_keeps_a_good_shard_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    arrays = SHARDS[0]
    payload = encode_shard(arrays, Encoding(), "zarr")
    path = tmp_path / publish_shard(tmp_path, payload, arrays, "zarr").path
    inode = path.stat().st_ino
    publish_shard(tmp_path, payload, arrays, "zarr")
    assert path.stat().st_ino == inode
    path.write_bytes(payload[:-1] + b"x")
    publish_shard(tmp_path, payload, arrays, "zarr")
    assert path.read_bytes() == payload


def test_shards_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    publish(root, [make_arrays(99)], "zarr")
    build_cache(root, "zarr", SHARDS)
    build_cache(tmp_path / "fresh", "zarr", SHARDS)
    assert files_of(root) == files_of(tmp_path / "fresh")
    assert not (root / ".dump").exists()


@pytest.mark.parametrize("extra", ["notes.txt", "shards/notes.txt", "tokenizer/old.json", "shards/more/x"])
def test_another_file_is_named_and_kept(tmp_path: Path, extra: str) -> None:
    (tmp_path / extra).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / extra).write_text("precious")
    with pytest.raises(OutputExistsError, match=f"{extra.removesuffix('/x')} is no part of the cache: move it away"):
        build_cache(tmp_path, "zarr", SHARDS)
    assert (tmp_path / extra).read_text() == "precious"
    with pytest.raises(CacheNotFoundError, match="unfinished"):
        lc.open(tmp_path)
    shutil.move(tmp_path / extra, tmp_path / ".dump" / "x")
    with contextlib.suppress(OSError):
        (tmp_path / "shards" / "more").rmdir()
    build_cache(tmp_path, "zarr", SHARDS)
    assert verify_cache(tmp_path).ok


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_shard_lost_before_the_end_is_named(tmp_path: Path, damage: str) -> None:
    entries = publish(tmp_path, SHARDS, "zarr")
    path = tmp_path / entries[2].path
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCacheError, match=entries[2].path):
        finalize_cache(tmp_path, entries, make_provenance(), Encoding(), "zarr", {})
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EIO, "can't write")]
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_when_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str, call: str
) -> None:
    payload = encode_shard(SHARDS[0], Encoding(), "zarr")

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, call, refuse)
    with pytest.raises(StorageError, match=advice) as caught:
        publish_shard(tmp_path, payload, SHARDS[0], "zarr")
    assert os.strerror(code) in str(caught.value)
    assert ".zarr.zip" in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """A file-size limit refuses in the middle of a write, as a full disk does."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from logitcache.utils.atomic import write_file; from logitcache.errors import StorageError\n"
        "try: write_file(Path(sys.argv[1]), 'shards/x', bytes(5000))\n"
        "except StorageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "shards/x: File too large" in shown
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_linked_directory_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shards").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="link"):
        publish_shard(tmp_path / "cache", b"x", SHARDS[0], "zarr")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_too_large_a_shard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitcache.cache.publish.MAX_SHARD_BYTES", 10)
    with pytest.raises(ConfigError, match="put less into one shard"):
        publish_shard(tmp_path, b"x" * 11, SHARDS[0], "zarr")


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        build_cache(tmp_path / "cache")
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert modes == {0o640}


@pytest.mark.parametrize("stop_at", range(0, 14))
def test_a_crash_while_finishing_leaves_no_cache_or_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    root = tmp_path / "cache"
    rest = (make_provenance(), Encoding(), "zarr", dict(TOKENIZER_FILES))
    finalize_cache(tmp_path / "fresh", publish(tmp_path / "fresh", SHARDS, "zarr"), *rest)
    entries = publish(root, SHARDS, "zarr")
    steps = 0

    def counted(function: Any) -> Any:
        def step(*arguments: Any, **more: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > stop_at:
                raise KeyboardInterrupt
            return function(*arguments, **more)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        patch.setattr(atomic, "sync_directory", counted(atomic.sync_directory))
        with contextlib.suppress(KeyboardInterrupt):
            finalize_cache(root, entries, *rest)
    if (root / "manifest.json").exists():
        assert lc.open(root).digest == lc.open(tmp_path / "fresh").digest
    else:
        with pytest.raises(CacheNotFoundError, match="unfinished cache: run the same `logitcache dump` command again"):
            lc.open(root)
    finalize_cache(root, entries, *rest)
    assert files_of(root) == files_of(tmp_path / "fresh")


# Opening ---------------------------------------------------------------------------------------------------------
