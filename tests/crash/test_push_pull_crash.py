"""Pushes and pulls killed at random moments leave no incomplete cache, and the rerun copies only what is missing."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from s3_server import S3Server
from share_tools import files_of, make_cache, s3

import logitcache as lc
from logitcache.cache.opening import verify
from logitcache.cache.remote import open_remote
from logitcache.errors import CacheNotFoundError
from logitcache.share.pulling import pull
from logitcache.share.pushing import push
from logitcache.stores.store import Store

pytestmark = pytest.mark.crash
__all__ = ["s3"]

KILLS = 30 if os.environ.get("LOGITCACHE_FULL_CRASH") else 6
SHARDS = 80


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.ForkServerContext:
    """Children are forks of a process that has imported everything and opened nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["logitcache.share.pushing", "logitcache.share.pulling", "obstore.store"])
    return context


def in_child(
    function: Callable[..., object], environment: dict[str, str], reports: Connection, *arguments: object
) -> None:
    """Run in a child with this environment, and send how many bytes have moved."""
    os.environ.update(environment)
    function(*arguments, progress=lambda phase, done, total, unit: reports.send(done))


def kill_at(
    context: multiprocessing.context.ForkServerContext,
    function: Callable[..., object],
    moved: float,
    later: float,
    *arguments: object,
) -> bool:
    """Kill a child a little after it has moved this many bytes; True if it was still running."""
    names = ("AWS_", "LOGITCACHE_")
    environment = {name: value for name, value in os.environ.items() if name.startswith(names)}
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(function, environment, sending, *arguments))
    child.start()
    sending.close()
    try:
        while moved > 0 and receiving.recv() < moved:
            pass
    except EOFError:
        pass  # done already
    child.join(later)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert alive or child.exitcode == 0
    return alive


def moments(seed: int, total: int) -> Iterator[tuple[float, float]]:
    """Bytes moved and seconds after that: some before the first byte, some after the last, most between."""
    chosen = random.Random(seed)
    for _ in range(KILLS):
        yield total * chosen.uniform(-0.1, 1.05), chosen.uniform(0, 0.02)


def test_killed_push(s3: S3Server, tmp_path: Path, context: multiprocessing.context.ForkServerContext) -> None:
    digest = make_cache(tmp_path / "cache", range(SHARDS))
    total = sum(entry.bytes for entry in lc.open(tmp_path / "cache").shards)
    broken_off = halfway = 0
    for number, (moved, later) in enumerate(moments(7, total)):
        url = s3.place()
        broken_off += kill_at(context, push, min(moved, total), later, tmp_path / "cache", url)
        try:
            assert lc.open(url).digest == digest
            assert verify(url).ok, f"kill {number}: a manifest is there, and not all it lists"
        except CacheNotFoundError:
            pass
        present = {item.path: item.size for item in Store(url).list("shards/")}
        assert all((tmp_path / "cache" / path).stat().st_size == size for path, size in present.items())
        halfway += 0 < len(present) < SHARDS
        assert push(tmp_path / "cache", url).moved_shards == SHARDS - len(present)
        assert verify(url).ok
    assert broken_off >= KILLS // 3
    assert halfway >= KILLS // 4


def test_killed_pull(s3: S3Server, tmp_path: Path, context: multiprocessing.context.ForkServerContext) -> None:
    digest = make_cache(tmp_path / "cache", range(SHARDS))
    url = s3.place()
    push(tmp_path / "cache", url)
    total = sum(entry.bytes for entry in lc.open(tmp_path / "cache").shards)
    broken_off = halfway = 0
    for number, (moved, later) in enumerate(moments(8, total)):
        out = tmp_path / f"copy{number}"
        broken_off += kill_at(context, pull, min(moved, total), later, url, out)
        try:
            assert lc.open(out).digest == digest
            # Killed after the manifest, a run leaves its empty scratch directory beside a whole cache.
            assert {fault.path for fault in verify(out).faults} <= {".dump"}
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
        for moved, later in moments(9, 3 * SHARDS):
            assert kill_at(context, read_all, moved, later, url)
            assert sum(path.stat().st_size for path in (tmp_path / "local" / "shards").glob("*")) <= limit
        assert [item.digest for item in lc.open(url)] == [item.digest for item in local]
        assert not list((tmp_path / "local" / "shards").glob("*.part"))
    finally:
        del os.environ["LOGITCACHE_CACHE_LIMIT"]


def read_all(url: str, progress: Callable[[str, int, int, str], None]) -> None:
    """Read a cache's shards again and again."""
    cache = open_remote(url)
    for number in range(1_000_000):
        cache.prefetch([(number + ahead) % SHARDS for ahead in range(8)])
        cache.read_shard(number % SHARDS)
        progress("read", number, 0, "shards")
