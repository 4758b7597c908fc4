"""A store that fails a fifth of the requests gives right results; one that fails all gives a clear error soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_proxy import BODY_FAULTS, REQUEST_FAULTS, FaultyProxy
from s3_server import S3Server
from share_tools import assert_same_content, files_of, make_cache, s3

import logitcache as lc
from logitcache.cache.catalogue import catalogue
from logitcache.cache.location import read_tag
from logitcache.cache.opening import verify
from logitcache.cache.remote import open_remote
from logitcache.errors import LogitCacheError, RemoteError, StorageError
from logitcache.share.merging import merge
from logitcache.share.pulling import pull
from logitcache.share.pushing import push, tag
from logitcache.stores.store import Store
from logitcache.stream import stream

pytestmark = pytest.mark.hostile
__all__ = ["s3"]

SHARDS = 30


@pytest.fixture
def pushed(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cache in the store, and a client that doesn't wait long."""
    make_cache(tmp_path / "cache", range(SHARDS))
    url = s3.place()
    push(tmp_path / "cache", url)
    monkeypatch.setenv("LOGITCACHE_STALL_SECONDS", "0.5")
    return url


def through(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")


def test_a_fifth_of_the_requests_fails(
    s3: S3Server, pushed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = lc.open(tmp_path / "cache")
    with FaultyProxy(s3.s3, 0.2, seed=3) as proxy:
        through(proxy, monkeypatch)
        for _ in range(2):
            url = s3.place()
            sent = push(tmp_path / "cache", f"{url}@latest")
            assert sent.moved_shards == SHARDS
            assert tag(f"{url}@latest", "stable") == local.digest
        pull(pushed, tmp_path / "copy")
        assert files_of(tmp_path / "copy") == files_of(tmp_path / "cache")
        assert_same_content(lc.open(pushed), local)
        assert verify(url, deep=True).ok
        make_cache(tmp_path / "more", range(SHARDS, SHARDS + 3))
        push(tmp_path / "more", f"{url}@more")
        merged = merge([f"{url}@latest", f"{url}@more"], f"{url}@both")
        assert (merged.sequences, merged.duplicates) == (len(local) + 9, 0)
        assert {name for item in catalogue(url) for name in item.tags} == {"latest", "stable", "more", "both"}
        # Enough happened for the test to mean something: every kind of failure.
        assert set(proxy.failed) >= set(REQUEST_FAULTS)
        assert set(proxy.failed) & set(BODY_FAULTS)


def test_training_order_and_content_survive_faults(
    s3: S3Server, pushed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(place: str | Path) -> list[list[int]]:
        found = stream(place, batch_size=4, seed=1, epochs=2)
        return [[*batch.input_ids.flatten().tolist(), *batch.targets.ids.flatten().tolist()] for batch in found]

    with FaultyProxy(s3.s3, 0.2, seed=4) as proxy:
        through(proxy, monkeypatch)
        assert batches(pushed) == batches(tmp_path / "cache")
        assert proxy.failed


@pytest.mark.parametrize("fault", ["corrupted", "shortened", "truncated", "drip", "lost"])
def test_every_kind_alone(
    s3: S3Server, pushed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with FaultyProxy(s3.s3, 0.3, (fault,), seed=5) as proxy:
        through(proxy, monkeypatch)
        pull(pushed, tmp_path / "copy")
        assert proxy.failed[fault]
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "cache")


@pytest.mark.parametrize("fault", ["corrupted", "shortened"])
def test_a_tag_that_arrives_damaged_is_asked_for_again(
    s3: S3Server, pushed: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    digest = open_remote(pushed).digest
    tag(f"{pushed}@{digest}", "v1")
    with FaultyProxy(s3.s3, 0.3, (fault,), seed=7) as proxy:
        through(proxy, monkeypatch)
        store = Store(pushed)
        assert {read_tag(store, "v1") for _ in range(10)} == {digest}
        assert proxy.failed[fault] > 1


@pytest.mark.parametrize("fault", [None, *REQUEST_FAULTS, *BODY_FAULTS])
def test_everything_fails(
    s3: S3Server, pushed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    opened = open_remote(pushed)
    monkeypatch.setenv("LOGITCACHE_TRIES", "2")
    jobs: dict[str, Callable[[], object]] = {
        "push": lambda: push(tmp_path / "cache", s3.place()),
        "pull": lambda: pull(pushed, tmp_path / "copy"),
        "open": lambda: lc.open(pushed),
        "verify": lambda: verify(pushed),
        "merge": lambda: merge([pushed, tmp_path / "cache"], tmp_path / "merged"),
        "list": lambda: catalogue(pushed),
        "tag": lambda: tag(f"{pushed}@{opened.digest}", "latest"),
    }
    with FaultyProxy(s3.s3, 1.0, None if fault is None else (fault,), seed=6) as proxy:
        through(proxy, monkeypatch)
        again = open_remote(opened.address)  # pinned, and its small files are here: no request
        jobs["read"] = lambda: again.read_shard(0)
        if fault in BODY_FAULTS:
            del jobs["push"]  # reads next to nothing
        if fault not in REQUEST_FAULTS:
            del jobs["list"]  # shows what can't be read, with the reason
        for name, job in jobs.items():
            started = time.monotonic()
            with pytest.raises(LogitCacheError) as caught:
                job()
            assert time.monotonic() - started < 30, name
            assert len(str(caught.value)) < 600
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "copy").exists()
    assert not list((tmp_path / "local" / "shards").glob("*"))


def test_no_server_at_all(s3: S3Server, pushed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LOGITCACHE_TRIES", "3")
    with pytest.raises(RemoteError, match=r"3 tries"):
        lc.open(pushed)


def test_full_disk_leaves_nothing_behind(
    s3: S3Server, pushed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = lc.open(pushed)
    monkeypatch.setattr("logitcache.stores.pool.os.posix_fallocate", _no_room)
    with pytest.raises(StorageError, match="free some space"):
        cache.read_shard(0)
    assert not list((tmp_path / "local" / "shards").glob("*"))


def _no_room(handle: int, offset: int, length: int) -> None:
    raise OSError(28, "No space left on device")
