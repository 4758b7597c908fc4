"""Caches in a real S3 server: push, open, pull, verify, and what two people may do at once."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from share_tools import assert_same_content, files_of, make_cache, s3

import logitcache as lc
from logitcache.cache import ShardFormatName
from logitcache.errors import (
    CacheNotFoundError,
    ConfigError,
    CorruptCacheError,
    MissingFileError,
    OfflineError,
    OutputExistsError,
    RemoteError,
)
from logitcache.share import Selection, catalogue, merge, pull, push, tag, verify
from logitcache.share.stores import Store

pytestmark = pytest.mark.integration
__all__ = ["s3"]


@pytest.mark.parametrize("shard_format", ["zarr", "arrow"])
def test_push_open_pull(s3: S3Server, tmp_path: Path, shard_format: ShardFormatName) -> None:
    digest = make_cache(tmp_path / "cache", range(12), shard_format)
    url = s3.place()
    sent = push(tmp_path / "cache", url)
    assert (sent.shards, sent.moved_shards, sent.digest) == (12, 12, digest)
    assert push(tmp_path / "cache", url).moved_shards == 0

    cache = lc.open(url)
    assert cache.digest == digest
    assert_same_content(cache, lc.open(tmp_path / "cache"))
    assert_same_content(pickle.loads(pickle.dumps(cache)), cache)
    assert_same_content(lc.open(Path(url)), cache)

    assert pull(url, tmp_path / "copy", dry_run=True).moved_shards == 12
    assert not (tmp_path / "copy").exists()
    pull(url, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "cache")
    assert verify(url, deep=True).ok


def test_pull_goes_on_and_repairs(s3: S3Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", range(8))
    url = s3.place()
    push(tmp_path / "cache", url)
    pull(url, tmp_path / "copy")
    first, second, *_ = sorted((tmp_path / "copy" / "shards").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    assert pull(url, tmp_path / "copy").moved_shards == 2
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "cache")


def test_pull_leaves_other_things_alone(s3: S3Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", range(2))
    url = s3.place()
    push(tmp_path / "cache", url)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="not empty"):
        pull(url, tmp_path / "mine")
    make_cache(tmp_path / "other", range(5, 7))
    with pytest.raises(OutputExistsError, match="another cache"):
        pull(url, tmp_path / "other")
    assert files_of(tmp_path / "mine") == {"thesis.tex": b"years of work"}


def test_http_reads_what_s3_holds(s3: S3Server, tmp_path: Path) -> None:
    digest = make_cache(tmp_path / "cache", range(4))
    url = s3.place()
    push(tmp_path / "cache", f"{url}@latest")
    web = s3.http(url)
    assert lc.open(f"{web}@latest").digest == digest
    assert_same_content(lc.open(f"{web}@{digest}"), lc.open(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="can only be read"):
        push(tmp_path / "cache", web)
    with pytest.raises(ConfigError, match="can't list"):
        catalogue(web)


def test_plain_web_server(s3: S3Server, tmp_path: Path) -> None:
    digest = make_cache(tmp_path / "site" / "cache", range(4))
    handler = functools.partial(_QuietHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cache = lc.open(f"http://127.0.0.1:{server.server_address[1]}/cache@{digest}")
        assert_same_content(cache, lc.open(tmp_path / "site" / "cache"))
        server.shutdown()


def test_hub_url_reads_as_the_hub_serves(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub here: a web server with the hub's paths. What the hub itself answers is not tested."""
    digest = make_cache(tmp_path / "datasets" / "me" / "it" / "resolve" / "main" / "cache", range(2))
    handler = functools.partial(_QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        cache = lc.open("hf://datasets/me/it/cache")
        assert cache.digest == digest
        assert len(list(cache)) == len(cache)
        server.shutdown()
    with pytest.raises(ConfigError, match="hf://datasets/OWNER/NAME"):
        lc.open("hf://me/it")


def test_credentials_of_a_profile(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    digest = make_cache(tmp_path / "cache", range(2))
    url = s3.place()
    push(tmp_path / "cache", url)
    (tmp_path / "credentials").write_text(
        f"[research]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "research")
    assert lc.open(url).digest == digest


def test_file_url_is_a_store_too(s3: S3Server, tmp_path: Path) -> None:
    digests = [make_cache(tmp_path / f"cache{n}", range(n, n + 3)) for n in range(2)]
    url = f"file://{tmp_path}/shared drive"
    for n, digest in enumerate(digests):
        assert push(tmp_path / f"cache{n}", f"{url}@run-{n}").digest == digest
    assert [lc.open(f"{url}@run-{n}").digest for n in range(2)] == digests
    assert len(list((tmp_path / "shared drive" / "shards").iterdir())) == 4
    with pytest.raises(CacheNotFoundError, match="does not exist"):
        lc.open(f"file://{tmp_path}/nowhere")
    assert not (tmp_path / "nowhere").exists()


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


def test_broken_off_push_keeps_the_name_until_it_is_taken_over(s3: S3Server, tmp_path: Path) -> None:
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


def test_subset_is_a_verified_cache(s3: S3Server, tmp_path: Path) -> None:
    digest = make_cache(tmp_path / "cache", range(6))
    url = s3.place()
    push(tmp_path / "cache", url)
    whole = lc.open(tmp_path / "cache")
    for number, (selection, picked) in enumerate(
        {
            Selection(shards=(0, 1, 4)): [*range(6), *range(12, 15)],
            Selection(sequences=(2, 10)): list(range(2, 10)),
            Selection(tokens=140): list(range(8)),
        }.items()
    ):
        out = tmp_path / f"part{number}"
        pull(url, out, selection)
        part = lc.open(out)
        assert [sequence.digest for sequence in part] == [whole[index].digest for index in picked]
        for mine, index in zip(part, picked, strict=True):
            assert mine.targets.logprobs.equal(whole[index].targets.logprobs)
            assert mine.targets.residual_logprob.equal(whole[index].targets.residual_logprob)
        assert part.manifest.provenance.parents == (digest,)
        assert verify(out, deep=True).ok
    with pytest.raises(ConfigError, match="no shard 9"):
        pull(url, tmp_path / "none", Selection(shards=(9,)))
    assert not (tmp_path / "none").exists()


def test_merge_within_a_store_moves_no_shard(s3: S3Server, tmp_path: Path) -> None:
    url = s3.place()
    for n, seeds in enumerate((range(5), range(5, 9))):
        make_cache(tmp_path / f"cache{n}", seeds)
        push(tmp_path / f"cache{n}", f"{url}@part-{n}")
    with FaultyProxy(s3.s3) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        merged = merge([f"{url}@part-0", f"{url}@part-1"], f"{url}@all", duplicates="keep")
        assert len(proxy.fetched) == 2  # one of each, to see what was stored
    assert merged.transfer.moved_shards == 0
    both = lc.open(f"{url}@all")
    parts = [lc.open(tmp_path / f"cache{n}") for n in range(2)]
    assert [sequence.digest for sequence in both] == [sequence.digest for part in parts for sequence in part]
    assert verify(f"{url}@all", deep=True).ok


def test_offline_uses_what_is_here(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path / "cache", range(4))
    url = s3.place()
    push(tmp_path / "cache", f"{url}@latest")
    cache = lc.open(url)
    cache.read_shard(0)
    monkeypatch.setenv("LOGITCACHE_OFFLINE", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    offline = lc.open(url)
    assert offline.digest == cache.digest
    offline.read_shard(0)
    with pytest.raises(OfflineError, match="isn't on this machine"):
        offline.read_shard(1)
    with pytest.raises(OfflineError, match="never opened"):
        lc.open(f"{url}@other")


def test_damage_here_is_fetched_again_and_damage_there_is_named(s3: S3Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", range(4))
    url = s3.place()
    push(tmp_path / "cache", url)
    cache = lc.open(url)
    for index in range(4):
        cache.read_shard(index)
    kept = tmp_path / "local" / cache.shards[0].path
    kept.write_bytes(b"x" * cache.shards[0].bytes)
    assert cache.read_shard(0).sequences == 3
    assert kept.read_bytes() == (tmp_path / "cache" / cache.shards[0].path).read_bytes()

    table = next((tmp_path / "local" / "caches").glob("*/shards.arrow"))
    table.write_bytes(b"x" + table.read_bytes()[1:])
    assert lc.open(url).digest == cache.digest

    for index in range(4):
        (tmp_path / "local" / cache.shards[index].path).unlink()
    store = Store(url)
    store.put(cache.shards[1].path, b"x" * cache.shards[1].bytes)
    store.put(cache.shards[2].path, b"x")
    store.delete(cache.shards[3].path)
    for index, kind in ((1, CorruptCacheError), (2, CorruptCacheError), (3, MissingFileError)):
        with pytest.raises(kind, match=cache.shards[index].path):
            cache.read_shard(index)
    faults = {fault.path: fault.kind for fault in verify(url).faults}
    assert faults == {
        cache.shards[1].path: "altered",
        cache.shards[2].path: "altered",
        cache.shards[3].path: "missing",
    }
    with pytest.raises(CorruptCacheError, match=r"altered|missing"):
        pull(url, tmp_path / "copy")
    with pytest.raises(CacheNotFoundError):
        lc.open(tmp_path / "copy")


def test_secrets_stay_secret(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path / "cache", range(2))
    url = s3.place()
    push(tmp_path / "cache", url)
    written = b"".join(content for content in files_of(tmp_path / "local").values())
    for name in (SECRET_KEY, str(tmp_path)):
        assert name.encode() not in written
        assert name not in "".join(str(item.to_json()) for item in catalogue(url.rpartition("/")[0]))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-hunter2")
    with pytest.raises(RemoteError, match="access denied") as caught:
        lc.open(url)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("LOGITCACHE_TRIES", "2")
    with pytest.raises(RemoteError) as caught:
        lc.open("http://someone:hunter2@127.0.0.1:1/cache")
    assert "hunter2" not in str(caught.value)


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
