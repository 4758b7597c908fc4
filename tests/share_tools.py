"""Shared by tests of push, pull, merge and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from cache_builder import build_cache, make_arrays
from s3_server import S3Server, start_s3

from logitcache.cache.sequence import CachedSequence
from logitcache.format.formats import ShardFormatName


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """The S3 server, with credentials in the environment and an empty local cache."""
    server = start_s3()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(tmp_path / "local"))
    monkeypatch.delenv("LOGITCACHE_OFFLINE", raising=False)
    return server


def make_cache(root: Path, seeds: range, shard_format: ShardFormatName = "zarr", **provenance: object) -> str:
    """A cache with one small shard per seed. Caches with a common seed have that shard in common."""
    return build_cache(root, shard_format, [make_arrays(seed, (20, 5, 30)) for seed in seeds], **provenance)


def assert_same_content(one: Sequence[CachedSequence], other: Sequence[CachedSequence]) -> None:
    """Both hold the same sequences with the same targets, bit for bit."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.digest == b.digest
        assert torch.equal(a.token_ids, b.token_ids)
        assert torch.equal(a.targets.ids, b.targets.ids)
        assert torch.equal(a.targets.logprobs, b.targets.logprobs)
        assert torch.equal(a.targets.residual_logprob, b.targets.residual_logprob)


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a directory by relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
