"""Names in a real S3 server: two processes at the same time, tags, digests, and the list of caches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_server import S3Server
from share_tools import assert_same_content, files_of, make_cache, s3

import logitcache as lc
from logitcache.cache.catalogue import catalogue
from logitcache.cache.opening import verify
from logitcache.errors import (
    CacheNotFoundError,
    ConfigError,
    OutputExistsError,
)
from logitcache.share.pulling import pull
from logitcache.share.pushing import push, tag
from logitcache.stores.store import Store

pytestmark = pytest.mark.integration
__all__ = ["s3"]


def test_two_caches_pushed_to_one_name_at_once(s3: S3Server, tmp_path: Path) -> None:
    digests = {make_cache(tmp_path / f"cache{n}", range(n * 4, n * 4 + 6)): tmp_path / f"cache{n}" for n in range(2)}

    def attempt(source: Path, url: str) -> str | None:
        try:
            return push(source, url).digest
        except OutputExistsError:
            return None

    for _ in range(15):
        url = s3.place()
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(attempt, digests.values(), [url, url]))
        won = [digest for digest in results if digest]
        assert len(won) == 1
        assert lc.open(url).digest == won[0]
        assert verify(url).ok


def test_two_caches_given_one_tag_at_once(s3: S3Server, tmp_path: Path) -> None:
    sources = [tmp_path / f"cache{n}" for n in range(2)]
    for n, source in enumerate(sources):
        make_cache(source, range(n * 4, n * 4 + 3))

    def attempt(source: Path, url: str) -> str | None:
        try:
            return push(source, f"{url}@latest").digest
        except OutputExistsError:
            return None

    for _ in range(10):
        url = s3.place()
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(attempt, sources, [url, url]))
        won = [digest for digest in results if digest]
        assert len(won) == 1
        assert lc.open(url).digest == won[0]


def test_interrupted_push_keeps_the_name_until_it_is_taken_over(s3: S3Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "one", range(3))
    digest = make_cache(tmp_path / "two", range(3, 6))
    url = s3.place()
    Store(url).create("manifest.sha256", (tmp_path / "one" / "manifest.sha256").read_bytes())
    with pytest.raises(CacheNotFoundError):
        lc.open(url)
    with pytest.raises(OutputExistsError, match="--take-over"):
        push(tmp_path / "two", url)
    push(tmp_path / "two", url, take_over=True)
    assert lc.open(url).digest == digest
    with pytest.raises(OutputExistsError, match="already holds another cache"):
        push(tmp_path / "one", url, take_over=True)


def test_interrupted_push_and_another_cache_pushed_there(s3: S3Server, tmp_path: Path) -> None:
    """Files of the first push stay; the second cache is complete, and the first push finds the name taken."""
    make_cache(tmp_path / "one", range(40))
    digest = make_cache(tmp_path / "two", range(38, 44))
    url = s3.place()

    def broken(phase: str, done: int, total: int | None, unit: str) -> None:
        if total and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(tmp_path / "one", url, progress=broken)
    assert list(Store(url).list("shards/"))
    with pytest.raises(OutputExistsError, match="--take-over"):
        push(tmp_path / "two", url)
    push(tmp_path / "two", url, take_over=True)
    assert_same_content(lc.open(url), lc.open(tmp_path / "two"))
    assert verify(url).ok
    with pytest.raises(OutputExistsError, match="already holds another cache"):
        push(tmp_path / "one", url)
    pull(url, tmp_path / "copy")
    assert lc.open(tmp_path / "copy").digest == digest
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "two")


@pytest.mark.parametrize("finished", [True, False])
def test_push_that_is_taken_over_while_it_runs_fails(s3: S3Server, tmp_path: Path, finished: bool) -> None:
    make_cache(tmp_path / "one", range(4))
    digest = make_cache(tmp_path / "two", range(4, 8))
    url = s3.place()

    def taken_over(phase: str, done: int, total: int | None, unit: str) -> None:
        if done != total:
            return
        if finished:
            push(tmp_path / "two", url, take_over=True)
        else:
            Store(url).put("manifest.sha256", (tmp_path / "two" / "manifest.sha256").read_bytes())

    with pytest.raises(OutputExistsError, match=r"took .* over meanwhile"):
        push(tmp_path / "one", url, progress=taken_over)
    push(tmp_path / "two", url)
    assert lc.open(url).digest == digest
    assert verify(url).ok


def test_two_take_a_name_over_at_once(s3: S3Server, tmp_path: Path) -> None:
    sources = [tmp_path / f"cache{n}" for n in range(3)]
    for n, source in enumerate(sources):
        make_cache(source, range(n * 4, n * 4 + 3))

    def attempt(source: Path, url: str) -> str | None:
        try:
            return push(source, url, take_over=True).digest
        except OutputExistsError:
            return None

    for _ in range(5):
        url = s3.place()
        Store(url).create("manifest.sha256", (sources[2] / "manifest.sha256").read_bytes())
        with ThreadPoolExecutor(2) as pool:
            won = [digest for digest in pool.map(attempt, sources[:2], [url, url]) if digest]
        assert len(won) == 1
        assert lc.open(url).digest == won[0]
        assert verify(url).ok


def test_collection_tags_and_pins(s3: S3Server, tmp_path: Path) -> None:
    one, two = (make_cache(tmp_path / f"cache{n}", range(n, n + 4)) for n in range(2))
    url = s3.place()
    push(tmp_path / "cache0", f"{url}@latest")
    # Three of its four shards are there already.
    assert push(tmp_path / "cache1", url, collection=True).moved_shards == 1
    assert lc.open(url).digest == one
    assert lc.open(f"{url}@{two}").digest == two
    with pytest.raises(OutputExistsError, match="--move-tag"):
        tag(f"{url}@{two}", "latest")
    assert tag(f"{url}@{two}", "latest", move=True) == two
    assert lc.open(f"{url}@latest").digest == two
    with pytest.raises(CacheNotFoundError, match="no tag 'newest'"):
        lc.open(f"{url}@newest")
    with pytest.raises(ConfigError, match="names another cache"):
        push(tmp_path / "cache0", f"{url}@{two}")


def test_catalogue(s3: S3Server, tmp_path: Path) -> None:
    one, two = (make_cache(tmp_path / f"cache{n}", range(n, n + 4)) for n in range(2))
    url = s3.place()
    push(tmp_path / "cache0", f"{url}@latest")
    push(tmp_path / "cache1", f"{url}/by-name")
    Store(url).put("broken/manifest.json", b"{}")
    listed = {item.address.removeprefix(url): item for item in catalogue(url)}
    assert set(listed) == {f"@{one}", "/by-name", "/broken"}
    assert listed[f"@{one}"].tags == ("latest",)
    assert listed["/by-name"].digest == two
    assert listed["/by-name"].date is not None
    assert listed["/broken"].fault is not None
    local = catalogue(tmp_path)
    assert {item.digest for item in local} == {one, two}
