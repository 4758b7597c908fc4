"""Names of caches, selections, sizes and retries, without a store."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.cache.selection import Selection, parse_range, parse_spans
from logitcache.errors import ConfigError, RemoteError
from logitcache.stores.local_cache import LocalSettings, parse_size
from logitcache.stores.retry import RetryPolicy, TransientError, retry
from logitcache.stores.url import Reference, as_url, parse_reference, public_url
from logitcache.train.config import TrainConfig
from logitcache.utils.parallel import run_parallel

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("s3://bucket/name", Reference("s3://bucket/name")),
        ("s3://bucket/name/", Reference("s3://bucket/name")),
        ("S3://bucket/Name", Reference("s3://bucket/Name")),
        ("s3://bucket/caches@latest", Reference("s3://bucket/caches", tag="latest")),
        ("s3://bucket@v1.0", Reference("s3://bucket", tag="v1.0")),
        (f"gs://bucket/caches@{DIGEST}", Reference("gs://bucket/caches", digest=DIGEST)),
        ("https://me:pass@host/caches", Reference("https://me:pass@host/caches")),
        ("https://me:pass@host/caches@a", Reference("https://me:pass@host/caches", tag="a")),
        ("https://me:pass@host", Reference("https://me:pass@host")),
        ("file:///data/a@b/c", Reference("file:///data/a@b/c")),
        ("hf://datasets/me/it@main", Reference("hf://datasets/me/it", tag="main")),
    ],
)
def test_references(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert "pass" not in str(reference)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://x/y",
        "cache",
        "s3://b/n@",
        "s3://b/n@-x",
        "s3://b/n@sha256:12",
        "s3://b/n@a b",
        "https://h/n?key=1",
        "s3://b/n#x",
    ],
)
def test_invalid_references(text: str) -> None:
    if text == "s3://b/n@":
        assert parse_reference(text) == Reference("s3://b/n")
        return
    with pytest.raises(ConfigError) as caught:
        parse_reference(text)
    assert "key=1" not in str(caught.value)


def test_urls_survive_pathlib() -> None:
    for url in ("s3://bucket/name", "https://host/x", "s3://bucket/caches@latest", "file:///data/x"):
        assert as_url(url) == url
        assert as_url(Path(url)) == url
    for path in ("cache", "/data/cache", "./s3", "c:/caches", "s3:/odd/but/a/string"):
        assert as_url(path) is None
    assert as_url(Path("c:/caches")) is None


def test_public_url_hides_what_is_secret() -> None:
    assert public_url("https://me:hunter2@host:80/a?sig=b#c") == "https://host:80/a"
    assert public_url("/a/b@c") == "/a/b@c"


def test_saved_settings_of_a_training_run_have_no_password() -> None:
    url = "https://me:hunter2@host/caches@latest"
    for caches in (url, (url, "local cache", "s3://bucket@v1")):
        config = TrainConfig.parse({"cache": caches, "student": "s", "out": "o", "eval_cache": url})
        saved = config.model_dump(mode="json")
        assert "hunter2" not in str(saved)
        assert saved["eval_cache"] == "https://host/caches@latest"
        assert config.caches[0] == url
    assert saved["cache"][1:] == ["local cache", "s3://bucket@v1"]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_spans_round_trip(numbers: set[int]) -> None:
    text = str(Selection(shards=tuple(numbers))).removeprefix("shards ")
    assert parse_spans(text, "--shards") == tuple(sorted(numbers))


def test_spans_and_ranges() -> None:
    assert parse_spans("0:4,7", "--shards") == (0, 1, 2, 3, 7)
    assert parse_range("1000", "--sequences") == (0, 1000)
    assert parse_range("5:9", "--sequences") == (5, 9)
    for text in ("", "a", "1:", "-1", "1-3", "4:4"):
        with pytest.raises(ConfigError, match="--shards"):
            parse_spans(text, "--shards")
    with pytest.raises(ConfigError, match="--sequences"):
        parse_range("a:b", "--sequences")
    with pytest.raises(ConfigError, match="only one"):
        Selection(shards=(1,), tokens=5)


def test_sizes() -> None:
    sizes = {"5": 5, "2kB": 2000, "1.5 GiB": 3 << 29, "200GB": 200 * 10**9, "3t": 3 * 10**12, "1mib": 1 << 20}
    for text, value in sizes.items():
        assert parse_size(text, "limit") == value
    for text in ("", "x", "5ib", "5 i", "-1", "1PB"):
        with pytest.raises(ConfigError, match="limit"):
            parse_size(text, "limit")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("LOGITCACHE_CACHE_LIMIT", "1GB")
    monkeypatch.setenv("LOGITCACHE_OFFLINE", "yes")
    assert LocalSettings.from_environment() == LocalSettings(tmp_path, 10**9, True)
    monkeypatch.setenv("LOGITCACHE_OFFLINE", "0")
    assert not LocalSettings.from_environment().offline
    monkeypatch.setenv("LOGITCACHE_TRIES", "three")
    with pytest.raises(ConfigError, match="LOGITCACHE_TRIES"):
        RetryPolicy.from_environment()


def test_retries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("logitcache.utils.parallel.time.sleep", pauses.append)
    random.seed(0)
    calls = io.StringIO()

    def fails() -> None:
        calls.write(".")
        raise TransientError("HTTP 503")

    with pytest.raises(RemoteError, match=r"can't read x: HTTP 503 \(6 tries"):
        retry(fails, "read x", RetryPolicy(tries=6, first_pause=1.0, longest_pause=5.0))
    assert len(calls.getvalue()) == 6
    assert len(pauses) == 5
    assert all(pause <= bound for pause, bound in zip(pauses, (1, 2, 4, 5, 5), strict=True))
    assert len(set(pauses)) == 5

    def fails_for_good() -> None:
        calls.write("!")
        raise RemoteError("denied")

    with pytest.raises(RemoteError, match="denied"):
        retry(fails_for_good, "read x", RetryPolicy())
    assert calls.getvalue().count("!") == 1


def test_parallel_jobs_stop_at_the_first_failure() -> None:
    seen: list[int] = []

    def job(number: int) -> int:
        if number == 20:
            raise ValueError("twenty")
        return number * 2

    with pytest.raises(ValueError, match="twenty"):
        run_parallel(range(10_000_000), job, 4, lambda item, result: seen.append(result))
    assert set(seen) >= {0}
    assert len(seen) < 100
    done: dict[int, int] = {}
    run_parallel(range(100), lambda number: number * number, 4, done.__setitem__)
    assert done == {number: number * number for number in range(100)}
