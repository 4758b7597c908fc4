"""Writing a cache and reading it back: what users see of a cache."""

from __future__ import annotations

import builtins
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_builder import SHARDS, TOP_K, VOCAB, build_cache, make_arrays

import logitcache as lc
from logitcache.cache.reader import KEPT_SHARDS
from logitcache.cache.sequence import CachedSequence
from logitcache.cache.verify import verify_cache
from logitcache.errors import (
    CorruptCacheError,
    MissingDependencyError,
)
from logitcache.format.arrays import ShardArrays


def expected_sequences() -> list[tuple[ShardArrays, slice, slice]]:
    """Shard, tokens and target rows of every sequence, found by walking the mask."""
    found = []
    for arrays in SHARDS:
        row = 0
        for index in range(arrays.sequences):
            tokens = slice(arrays.offsets_S1[index], arrays.offsets_S1[index + 1])
            count = int(arrays.target_mask_L[tokens].sum())
            found.append((arrays, tokens, slice(row, row + count)))
            row += count
    return found


def test_every_sequence_comes_back(root: Path) -> None:
    cache = lc.open(root)
    expected = expected_sequences()
    assert len(cache) == len(expected) == 8
    assert (cache.top_k, cache.vocab_size) == (TOP_K, VOCAB)
    for found, (arrays, tokens, rows) in zip(cache, expected, strict=True):
        assert found.token_ids.dtype == torch.int64
        assert found.token_ids.tolist() == arrays.token_ids_L[tokens].tolist()
        assert found.positions.tolist() == np.flatnonzero(arrays.target_mask_L[tokens]).tolist()
        assert found.labels.tolist() == [int(found.token_ids[position + 1]) for position in found.positions]
        assert found.targets.ids.tolist() == arrays.topk_ids_NK[rows].tolist()
        assert found.targets.vocab_size == VOCAB
        difference = found.targets.logprobs.numpy() - arrays.topk_logprobs_NK[rows]
        assert np.abs(difference).max(initial=0) <= cache.manifest.encoding.bound
        residual = found.targets.residual_logprob.numpy() - arrays.residual_logprob_N[rows]
        assert np.abs(residual).max(initial=0) <= cache.manifest.encoding.bound


def test_indices_and_slices(root: Path) -> None:
    cache = lc.open(root)
    assert cache[-1].digest == cache[len(cache) - 1].digest
    assert [item.digest for item in cache[2:6:2]] == [cache[2].digest, cache[4].digest]
    assert [item.digest for item in cache[::-1][1:3]] == [cache[6].digest, cache[5].digest]
    assert len(cache[5:5]) == 0
    for index in (8, -9):
        with pytest.raises(IndexError, match=f"sequence {index} of 8"):
            cache[index]


def test_shards_are_a_lazy_table(root: Path) -> None:
    cache = lc.open(root)
    assert [(entry.sequences, entry.tokens) for entry in cache.shards] == [(4, 16), (0, 0), (1, 3), (3, 12)]
    assert cache.read_shard(-1).tokens == 12
    assert cache.manifest.totals.bytes == sum((root / entry.path).stat().st_size for entry in cache.shards)


def test_statistics_come_back(tmp_path: Path) -> None:
    arrays = make_arrays(5, statistics=True)
    build_cache(tmp_path / "cache", "zarr", [arrays])
    targets = lc.TopK.cat([item.targets for item in lc.open(tmp_path / "cache")])
    assert targets.log_partition is not None
    assert targets.log_partition.numpy().tobytes() == arrays.log_partition_N.tobytes()
    assert targets.logit_std.numpy().tobytes() == arrays.logit_std_N.tobytes()


def test_what_a_caller_writes_does_not_reach_the_cache(root: Path) -> None:
    cache = lc.open(root)
    before = cache[0].targets.logprobs.clone()
    cache[0].targets.logprobs.fill_(7)
    cache[0].token_ids.fill_(7)
    assert torch.equal(cache[0].targets.logprobs, before)


def test_representations_say_what_matters(root: Path) -> None:
    cache = lc.open(root)
    assert repr(cache[0]) == (
        f"CachedSequence(6 tokens, {len(cache[0].targets)} targets × top 5 of 300, digest {cache[0].digest[:12]}…)"
    )
    assert "8 sequences, 31 tokens" in repr(cache)
    assert repr(cache[2:4]) == "CacheSlice(2 of 8 sequences)"
    assert isinstance(cache[0], CachedSequence)


def test_threads_share_a_cache_and_processes_reopen_it(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache", "zarr", [make_arrays(seed) for seed in range(3 * KEPT_SHARDS)])
    cache = lc.open(tmp_path / "cache")
    expected = [item.digest for item in cache]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(cache)), 4))
    with ThreadPoolExecutor(8) as pool:
        assert [item.digest for item in pool.map(cache.__getitem__, order.tolist())] == [expected[i] for i in order]
    assert len(cache._kept) <= KEPT_SHARDS
    assert not cache._shard_locks
    copy = pickle.loads(pickle.dumps(cache))
    assert [item.digest for item in copy] == expected
    shutil.rmtree(tmp_path / "cache")
    pickled = pickle.dumps(cache)
    build_cache(tmp_path / "cache", "zarr")
    with pytest.raises(CorruptCacheError, match="now holds another cache"):
        pickle.loads(pickled)


def test_a_failed_read_leaves_no_lock_behind(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache")
    cache = lc.open(tmp_path / "cache")
    path = tmp_path / "cache" / cache.shards[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    for _ in range(2):
        with pytest.raises(CorruptCacheError, match="was altered"):
            cache[0]
    path.write_bytes(whole)
    assert len(cache[0]) == 6


def test_arrow_has_a_row_a_sequence(root: Path) -> None:
    cache = lc.open(root)
    table = cache.to_arrow().read_all()
    table.validate(full=True)
    assert table.num_rows == len(cache)
    assert table["sequence"].to_pylist() == list(range(8))
    for row, item in zip(table.to_pylist(), cache, strict=True):
        assert row["digest"].hex() == item.digest
        assert row["token_ids"] == item.token_ids.tolist()
        assert row["positions"] == item.positions.tolist()
        assert row["topk_ids"] == item.targets.ids.tolist()
        assert np.array_equal(np.array(row["topk_logprobs"], np.float32).reshape(-1, TOP_K), item.targets.logprobs)
        assert np.array_equal(np.array(row["residual_logprob"], np.float32), item.targets.residual_logprob)


def test_datasets_in_memory_and_streamed(root: Path) -> None:
    cache = lc.open(root)
    whole, streamed = cache.to_datasets(), cache.to_datasets(streaming=True)
    assert list(whole) == list(streamed)
    assert whole[0]["token_ids"] == cache[0].token_ids.tolist()
    assert streamed.num_shards == len(cache.shards)


def test_without_datasets_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_datasets(name: str, *rest: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", no_datasets)
    with pytest.raises(MissingDependencyError, match=r"pip install 'logitcache\[datasets\]'"):
        lc.open(root).to_datasets()


def test_an_empty_cache(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache", "zarr", [])
    cache = lc.open(tmp_path / "cache")
    assert len(cache) == 0
    assert list(cache) == []
    assert cache.to_arrow().read_all().num_rows == 0
    assert verify_cache(tmp_path / "cache", deep=True).ok


def test_lengths_alone(root: Path, tmp_path: Path) -> None:
    cache = lc.open(root)
    for index, arrays in enumerate(SHARDS):
        assert cache.read_lengths(index).tolist() == np.diff(arrays.offsets_S1).tolist()
    damaged = tmp_path / "damaged"
    shutil.copytree(root, damaged)
    cache = lc.open(damaged)
    first = damaged / cache.shards[0].path
    content = first.read_bytes()
    first.write_bytes(bytes(len(content)))
    with pytest.raises(CorruptCacheError, match=cache.shards[0].path):
        cache.read_lengths(0)
    first.write_bytes(content[:-1])
    with pytest.raises(CorruptCacheError, match="cut off or altered"):
        cache.read_lengths(0)
    first.unlink()
    with pytest.raises(CorruptCacheError, match="is missing"):
        cache.read_lengths(0)
    with pytest.raises(IndexError):
        cache.read_lengths(99)
