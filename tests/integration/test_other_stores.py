"""Stores other than S3: web servers, the hub's URLs, directories."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import pytest
from s3_server import S3Server
from share_tools import assert_same_content, make_cache, s3

import logitcache as lc
from logitcache.cache.catalogue import catalogue
from logitcache.errors import (
    CacheNotFoundError,
    ConfigError,
)
from logitcache.share.pushing import push

pytestmark = pytest.mark.integration
__all__ = ["s3"]


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
    """A web server with the hub's paths is used. The hub itself isn't tested."""
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


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""
