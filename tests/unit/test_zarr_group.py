"""zarr-python writes the Zarr shards, and ``Cache.zarr`` opens them as its groups."""

from __future__ import annotations

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from cache_builder import SHARDS, TOP_K, build_cache
from shard_strategies import random_shard

import logitcache as lc
from logitcache.errors import ConfigError, CorruptCacheError
from logitcache.format.encoding import Encoding, encode_arrays
from logitcache.format.formats import decode_shard, encode_shard, open_group
from logitcache.format.stored import StoredShard
from logitcache.format.zarr_shard import ZarrShards
from logitcache.share.pushing import push


def members(payload: bytes) -> dict[str, bytes]:
    archive = zipfile.ZipFile(io.BytesIO(payload))
    return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return target.getvalue()


def plain_zarr(stored: StoredShard, path: Path) -> dict[str, bytes]:
    """The files that zarr makes of these arrays in a directory, by its plainest calls."""
    group = zarr.create_group(path, zarr_format=3, attributes=dict(stored.attributes))
    for name, values in stored.arrays.items():
        level = json.loads(members(ZarrShards().write(stored))[f"{name}/zarr.json"])["codecs"][1]["configuration"]
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=tuple(max(1, size) for size in values.shape),
            compressors=zarr.codecs.ZstdCodec(**level),
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        array[...] = values
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def shard_with_zeros() -> StoredShard:
    """A real shard, and beside its arrays one of each other kind: all zeros, empty, float32."""
    stored = encode_arrays(random_shard(2, [1300, 7], 3000, 16, values="absurd", statistics=True), Encoding())
    more = {"zeros": np.zeros((3, 5), np.uint32), "empty": np.zeros((0, 4), np.uint8), "ones": np.ones(4, np.float32)}
    return StoredShard({**stored.arrays, **more}, stored.attributes)


def test_files_are_those_that_zarr_writes(tmp_path: Path) -> None:
    """Chunks bit for bit, metadata by content; what some versions of zarr add to it says nothing."""
    stored = shard_with_zeros()
    ours, its = members(ZarrShards().write(stored)), plain_zarr(stored, tmp_path / "plain")
    assert ours.keys() == its.keys()
    assert "zeros/c/0/0" in ours
    for name, content in its.items():
        if name.endswith("zarr.json"):
            value = json.loads(content)
            assert value.pop("storage_transformers", []) == []
            assert value.pop("consolidated_metadata", None) is None
            assert json.loads(ours[name]) == value, name
        else:
            assert ours[name] == content, name


def test_metadata_in_the_form_of_zarr_itself_is_read(tmp_path: Path) -> None:
    arrays = random_shard(2, [1300, 7], 3000, 16)
    written = zipped(plain_zarr(encode_arrays(arrays, Encoding()), tmp_path / "plain"))
    decoded = decode_shard(written, "zarr")
    for name, column in decode_shard(encode_shard(arrays, Encoding(), "zarr"), "zarr").columns().items():
        np.testing.assert_array_equal(decoded.columns()[name], column, name)


def test_bytes_do_not_depend_on_threads_or_on_settings_of_zarr() -> None:
    stored = shard_with_zeros()
    expected = ZarrShards().write(stored)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: ZarrShards().write(stored), range(12))) == {expected}
    with zarr.config.set({"json_indent": None, "array.order": "F", "array.write_empty_chunks": False}):
        assert ZarrShards().write(stored) == expected


@pytest.mark.parametrize("where", ["directory", "url"])
def test_a_cache_opens_its_shards_as_groups(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(tmp_path / "local"))
    root = tmp_path / "cache"
    build_cache(root, "zarr", SHARDS)
    cache = lc.open(root)
    if where == "url":
        push(root, f"file://{tmp_path}/store")
        cache = lc.open(f"file://{tmp_path}/store")
    for index, entry in enumerate(cache.shards):
        group = cache.zarr(index)
        with zarr.storage.ZipStore(root / entry.path, mode="r") as store:
            plain = zarr.open_group(store, mode="r")
            assert dict(group.attrs) == dict(plain.attrs)
            assert group.attrs["top_k"] == TOP_K
            assert set(group.array_keys()) == set(plain.array_keys())
            for name, array in plain.arrays():
                np.testing.assert_array_equal(group[name][...], array[...], name)
    with pytest.raises(ValueError, match="read-only"):
        cache.zarr(0).create_group("more")
    with pytest.raises(IndexError):
        cache.zarr(len(SHARDS))


def test_an_altered_shard_is_not_opened(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache", "zarr", SHARDS)
    cache = lc.open(tmp_path / "cache")
    path = tmp_path / "cache" / cache.shards[1].path
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptCacheError, match=path.name):
        cache.zarr(1)


def test_a_missing_chunk_is_not_read_as_zeros() -> None:
    files = members(encode_shard(SHARDS[0], Encoding(), "zarr"))
    del files["residual/c/0/0"]
    with pytest.raises(CorruptCacheError, match=r"here: the chunk residual/c/0/0 is missing"):
        open_group(zipped(files), "zarr", "here")


@pytest.mark.parametrize("level", [None, "9", True, 23, 1.0])
def test_level_must_be_one_of_zstd(level: object) -> None:
    files = members(encode_shard(SHARDS[0], Encoding(), "zarr"))
    value = json.loads(files["residual/zarr.json"])
    value["codecs"][1]["configuration"]["level"] = level
    files["residual/zarr.json"] = json.dumps(value).encode()
    with pytest.raises(CorruptCacheError, match="residual: zstd has no level"):
        open_group(zipped(files), "zarr", "here")


def test_arrow_shards_have_no_group(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache", "arrow", SHARDS)
    with pytest.raises(ConfigError, match=r"has the format arrow.*`logitcache convert --format zarr`"):
        lc.open(tmp_path / "cache").zarr(0)
