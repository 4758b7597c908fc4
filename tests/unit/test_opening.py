"""Opening a cache: finished caches, other places, and files that may be in a cache's directory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cache_builder import SHARDS, make_arrays, make_provenance, publish
from share_tools import files_of, make_cache

import logitcache as lc
from logitcache.cache.publish import finalize_cache
from logitcache.cache.verify import verify_cache
from logitcache.errors import CacheNotFoundError, CorruptCacheError, MissingFileError
from logitcache.format.encoding import Encoding
from logitcache.share.pushing import push


def test_places_without_a_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFoundError, match="does not exist"):
        lc.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheNotFoundError, match="is a file"):
        lc.open(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheNotFoundError, match="is not a cache"):
        lc.open(tmp_path / "empty")
    publish(tmp_path / "unfinished", SHARDS, "zarr")
    with pytest.raises(CacheNotFoundError, match="unfinished cache"):
        lc.open(tmp_path / "unfinished")


def test_a_cache_may_be_reached_through_a_link_and_as_a_string(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert lc.open(str(tmp_path / "link"))[0].digest == lc.open(root)[0].digest


def test_a_cache_on_read_only_storage(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "cache")
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = files_of(tmp_path / "cache")
    assert len(list(lc.open(tmp_path / "cache"))) == 8
    assert verify_cache(tmp_path / "cache", deep=True).ok
    assert files_of(tmp_path / "cache") == before
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        path.chmod(0o755)


def test_notes_beside_a_cache_are_allowed(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "cache")
    for name in ("README.md", "LICENSE", ".gitattributes"):
        (tmp_path / "cache" / name).write_text("for people")
    assert lc.open(tmp_path / "cache").digest == lc.open(root).digest
    assert verify_cache(tmp_path / "cache").ok


def test_a_shard_of_another_k_is_named(tmp_path: Path) -> None:
    entries = publish(tmp_path, [make_arrays(0), make_arrays(1, k=3)], "zarr")
    finalize_cache(tmp_path, entries, make_provenance(), Encoding(), "zarr", {})
    with pytest.raises(CorruptCacheError, match=rf"{entries[1].path} holds k = 3, the cache says 5"):
        lc.open(tmp_path)[-1]


def test_totals_are_the_tables(tmp_path: Path) -> None:
    entries = [replace(entry, tokens=entry.tokens + 1) for entry in publish(tmp_path, SHARDS, "zarr")]
    finalize_cache(tmp_path, entries, make_provenance(), Encoding(), "zarr", {})
    with pytest.raises(CorruptCacheError, match="holds tokens = 16, the cache says 17"):
        lc.open(tmp_path)[0]


def test_a_shard_that_is_missing_is_named_before_anything_is_done_with_the_cache(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", range(2))
    shard = lc.open(tmp_path / "cache").shards[1].path
    (tmp_path / "cache" / shard).unlink()
    with pytest.raises(MissingFileError, match=f"{shard} is missing"):
        lc.open(tmp_path / "cache")
    with pytest.raises(MissingFileError, match=f"{shard} is missing"):
        push(tmp_path / "cache", f"file://{tmp_path}/store")
    assert not (tmp_path / "store").exists()
