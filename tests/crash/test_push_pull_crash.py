"""Pushes and pulls killed at random moments: nothing half-visible, and the rerun moves only what is missing."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import S3Server
from share_tools import files_of, make_cache, s3

import logitcache as lc
from logitcache.cache import verify_cache
from logitcache.errors import CacheNotFoundError
from logitcache.share import pull, push
from logitcache.share.stores import Store

pytestmark = pytest.mark.crash
__all__ = ["s3"]

KILLS = 30 if os.environ.get("LOGITCACHE_FULL_CRASH") else 8
SHARDS = 120


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.ForkServerContext:
    """Children begin from a process that has imported everything and opened nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["logitcache.share.pushing", "logitcache.share.pulling", "obstore.store"])
    return context


def in_child(function: Callable[..., object], environment: dict[str, str], *arguments: object) -> None:
    """Run in a child with this environment."""
    os.environ.update(environment)
    function(*arguments)


def kill_after(
    context: multiprocessing.context.ForkServerContext,
    function: Callable[..., object],
    seconds: float,
    *arguments: object,
) -> bool:
    """Start a child and kill it; True if it was still at work."""
    names = ("AWS_", "LOGITCACHE_")
    environment = {name: value for name, value in os.environ.items() if name.startswith(names)}
    child = context.Process(target=in_child, args=(function, environment, *arguments))
    child.start()
    child.join(seconds)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert alive or child.exitcode == 0
    return alive


def time_of(
    context: multiprocessing.context.ForkServerContext, function: Callable[..., object], *arguments: object
) -> float:
    """Seconds that a child takes for the whole."""
    started = time.monotonic()
    assert not kill_after(context, function, 120, *arguments)
    return time.monotonic() - started


def test_killed_push(s3: S3Server, tmp_path: Path, context: multiprocessing.context.ForkServerContext) -> None:
    digest = make_cache(tmp_path / "cache", range(SHARDS))
    whole = time_of(context, push, tmp_path / "cache", s3.place())
    whole = min(whole, time_of(context, push, tmp_path / "cache", s3.place()))
    broken_off = halfway = 0
    moments = random.Random(7)
    for number in range(KILLS):
        url = s3.place()
        broken_off += kill_after(context, push, moments.uniform(0, whole), tmp_path / "cache", url)
        try:
            assert lc.open(url).digest == digest
            assert verify_cache(url).ok, f"kill {number}: a manifest is there, and not all it lists"
        except CacheNotFoundError:
            pass
        present = {item.path: item.size for item in Store(url).list("shards/")}
        assert all((tmp_path / "cache" / path).stat().st_size == size for path, size in present.items())
        halfway += 0 < len(present) < SHARDS
        assert push(tmp_path / "cache", url).moved_shards == SHARDS - len(present)
        assert verify_cache(url).ok
    assert broken_off >= KILLS // 3
    assert halfway >= KILLS // 4


def test_killed_pull(s3: S3Server, tmp_path: Path, context: multiprocessing.context.ForkServerContext) -> None:
    digest = make_cache(tmp_path / "cache", range(SHARDS))
    url = s3.place()
    push(tmp_path / "cache", url)
    whole = min(time_of(context, pull, url, tmp_path / f"timed{n}") for n in range(2))
    broken_off = halfway = 0
    moments = random.Random(8)
    for number in range(KILLS):
        out = tmp_path / f"copy{number}"
        broken_off += kill_after(context, pull, moments.uniform(0, whole), url, out)
        try:
            assert lc.open(out).digest == digest
            assert verify_cache(out).ok
        except CacheNotFoundError:
            pass
        present = files_of(out / "shards")
        assert all((tmp_path / "cache" / "shards" / name).read_bytes() == payload for name, payload in present.items())
        halfway += 0 < len(present) < SHARDS
        assert pull(url, out).moved_shards == SHARDS - len(present)
        assert files_of(out) == files_of(tmp_path / "cache")
    assert broken_off >= KILLS // 3
    assert halfway >= KILLS // 4


def test_killed_readers_leave_the_local_cache_usable(
    s3: S3Server, tmp_path: Path, context: multiprocessing.context.ForkServerContext
) -> None:
    make_cache(tmp_path / "cache", range(SHARDS))
    url = s3.place()
    push(tmp_path / "cache", url)
    local = lc.open(tmp_path / "cache")
    limit = sum(entry.bytes for entry in local.shards) // 4
    os.environ["LOGITCACHE_CACHE_LIMIT"] = str(limit)
    try:
        moments = random.Random(9)
        for _ in range(KILLS):
            kill_after(context, read_all, moments.uniform(0, 1.0), url)
            assert sum(path.stat().st_size for path in (tmp_path / "local" / "shards").glob("*")) <= limit
        assert [item.digest for item in lc.open(url)] == [item.digest for item in local]
        assert not list((tmp_path / "local" / "shards").glob("*.part"))
    finally:
        del os.environ["LOGITCACHE_CACHE_LIMIT"]


def read_all(url: str) -> None:
    """Read a cache from its first to its last sequence, again and again."""
    cache = lc.open(url)
    for _ in range(100):
        cache.prefetch(range(len(cache.shards)))
        assert len(list(cache)) == len(cache)
