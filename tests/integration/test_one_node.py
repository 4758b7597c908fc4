"""Eight processes of one node read one remote cache through a local cache with a quarter of its size."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from s3_server import S3Server
from share_tools import assert_same_content, make_cache, s3

import logitcache as lc
from logitcache.cache.remote import open_remote
from logitcache.share.pushing import push
from logitcache.stores.local_cache import LocalSettings
from logitcache.stores.pool import ShardPool
from logitcache.stream import stream

pytestmark = pytest.mark.integration
__all__ = ["s3"]

PROCESSES = 8
SHARDS = 64
EPOCHS = 2


def read_as_rank(rank: int, url: str, environment: dict[str, str], start: object, out: Path) -> None:
    """Stream the cache as one rank of eight, and write a digest of all its data.

    Ranks wait for one another at each step, as training does when it sums gradients.
    """
    os.environ.update(environment)
    cache = lc.open(url)
    start.wait()  # type: ignore[attr-defined]
    digest = hashlib.sha256()
    batches = stream(cache, batch_size=2 * PROCESSES, seed=1, epochs=EPOCHS, rank=rank, world_size=PROCESSES)
    for batch in batches:
        targets = batch.targets
        for tensor in (batch.input_ids, targets.ids, targets.logprobs, targets.residual_logprob):
            digest.update(tensor.numpy().tobytes())
        start.wait(100)  # type: ignore[attr-defined]
    out.write_text(digest.hexdigest())


def test_eight_processes_share_a_quarter(s3: S3Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", range(SHARDS))
    url = s3.place()
    push(tmp_path / "cache", url)
    local = lc.open(tmp_path / "cache")
    limit = sum(entry.bytes for entry in local.shards) // 4
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["logitcache.cache.remote", "logitcache.stream", "obstore.store"])
    start = context.Barrier(PROCESSES)
    sizes: list[int] = []
    stopped = threading.Event()
    watcher = threading.Thread(target=watch, args=(tmp_path / "local" / "shards", sizes, stopped))
    with FaultyProxy(s3.s3) as proxy:
        environment = s3.environment(proxy.port) | {
            "LOGITCACHE_CACHE_DIR": str(tmp_path / "local"),
            "LOGITCACHE_CACHE_LIMIT": str(limit),
        }
        ranks = [
            context.Process(target=read_as_rank, args=(rank, url, environment, start, tmp_path / f"rank{rank}"))
            for rank in range(PROCESSES)
        ]
        watcher.start()
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        stopped.set()
        watcher.join()
        fetched = proxy.fetched
    assert [process.exitcode for process in ranks] == [0] * PROCESSES
    for rank in range(PROCESSES):
        read_as_rank(rank, str(tmp_path / "cache"), {}, threading.Barrier(1), tmp_path / "expected")
        assert (tmp_path / f"rank{rank}").read_text() == (tmp_path / "expected").read_text()
    assert max(sizes) <= limit
    assert len(fetched) == SHARDS
    print(f"{sum(fetched.values())} downloads of {SHARDS} shards in {EPOCHS} epochs")
    # Once a pass, or a few more where one process ran ahead of the others; without sharing it would be 8 times that.
    assert sum(fetched.values()) <= 1.5 * EPOCHS * SHARDS


def watch(directory: Path, sizes: list[int], stopped: threading.Event) -> None:
    """Note the sum of the files' sizes every few milliseconds."""
    while not stopped.is_set():
        if directory.is_dir():
            total = 0
            for path in directory.iterdir():
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    continue
            sizes.append(total)
        time.sleep(0.002)


def test_a_locked_shard_is_not_removed(tmp_path: Path) -> None:
    pool = ShardPool(tmp_path, 100)
    payloads = {f"shards/{name}": name.encode() * 40 for name in "abc"}

    def read(name: str) -> bytes:
        payload = payloads[name]
        return pool.read(name, 40, hashlib.sha256(payload).hexdigest(), lambda file: file.write(payload))

    read("shards/a")
    time.sleep(0.01)
    read("shards/b")
    with pool._shared_lock("shards/a") as held:
        assert held is not None
        read("shards/c")  # b is removed, although a is older
        assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["a", "c"]
    time.sleep(0.01)
    read("shards/b")
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["b", "c"]
    assert pool.used() == 80


def test_threads_fetch_a_shard_once(s3: S3Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", range(8))
    url = s3.place()
    push(tmp_path / "cache", url)
    with FaultyProxy(s3.s3) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        cache = open_remote(url)
        cache.prefetch(range(8))
        readers = [threading.Thread(target=cache.read_shard, args=(n % 8,)) for n in range(32)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert sorted(proxy.fetched.values()) == [1] * 8
    assert_same_content(cache, lc.open(tmp_path / "cache"))


def test_forked_worker_reads_local_shards_and_refuses_others(s3: S3Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", range(2))
    url = s3.place()
    push(tmp_path / "cache", url)
    cache = open_remote(url)
    cache.read_shard(0)
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        sending.send(cache.read_shard(0).sequences)
        for attempt in (lambda: cache.read_shard(1), lambda: lc.open(url)):
            try:
                attempt()
            except lc.LogitCacheError as error:
                sending.send(str(error))

    worker = multiprocessing.get_context("fork").Process(target=child)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert receiving.recv() == 3
    for _ in range(2):
        assert "spawn" in receiving.recv()
    assert cache.read_shard(1).sequences == 3


def test_shard_larger_than_the_limit_is_a_clear_error(s3: S3Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", range(2))
    url = s3.place()
    push(tmp_path / "cache", url)
    cache = open_remote(url, LocalSettings(tmp_path / "small", limit=100))
    with pytest.raises(lc.LogitCacheError, match="LOGITCACHE_CACHE_LIMIT"):
        cache.read_shard(0)
