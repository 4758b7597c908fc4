"""Reading a cache in a real S3 server: offline, damaged, with a tag that moves, and with secrets."""

from __future__ import annotations

import base64
import http.server
import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from s3_server import SECRET_KEY, S3Server
from share_tools import assert_same_content, files_of, make_cache, s3
from typer.testing import CliRunner

import logitcache as lc
from logitcache.cache.catalogue import catalogue
from logitcache.cache.opening import verify
from logitcache.cli.main import app
from logitcache.errors import (
    CacheNotFoundError,
    CorruptCacheError,
    MissingFileError,
    OfflineError,
    RemoteError,
)
from logitcache.share.merging import merge
from logitcache.share.pulling import pull
from logitcache.share.pushing import push, tag
from logitcache.stores.store import Store

pytestmark = pytest.mark.integration
__all__ = ["s3"]


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
    with pytest.raises(OfflineError, match="isn't on this machine"):
        pull(url, tmp_path / "copy")
    assert not (tmp_path / "copy" / "manifest.json").exists()
    jobs: list[Callable[[], object]] = [
        lambda: push(tmp_path / "cache", f"{url}@other"),
        lambda: push(tmp_path / "cache", f"{url}@other", dry_run=True),
        lambda: catalogue(url),
        lambda: verify(url),
        lambda: tag(url, "other"),
        lambda: merge([tmp_path / "cache", make_other(tmp_path / "other")], url),
    ]
    for job in jobs:
        with pytest.raises(OfflineError, match="asks no store"):
            job()


def test_tag_that_moves_while_it_is_read(s3: S3Server, tmp_path: Path) -> None:
    one, two = (make_cache(tmp_path / name, seeds) for name, seeds in (("one", range(6)), ("two", range(6, 9))))
    url = s3.place()
    push(tmp_path / "one", f"{url}@latest")
    cache = lc.open(f"{url}@latest")
    cache.read_shard(0)
    push(tmp_path / "two", f"{url}@latest", move_tag=True)
    assert_same_content(cache, lc.open(tmp_path / "one"))
    assert pickle.loads(pickle.dumps(cache)).digest == cache.digest == one
    assert lc.open(f"{url}@latest").digest == two


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
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-hunter2")
    for job in (lambda: lc.open(url), lambda: push(tmp_path / "cache", f"{url}/x"), lambda: catalogue(url)):
        with pytest.raises(RemoteError, match="access denied") as caught:
            job()
        assert "hunter2" not in everything_said(caught.value)


def test_password_of_a_url_is_used_and_never_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("LOGITCACHE_TRIES", "2")
    make_cache(tmp_path / "site" / "cache", range(3))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Guarded, directory=tmp_path / "site")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        url = f"http://me:hunter2@{host}/cache"
        cache = lc.open(url)
        assert_same_content(pickle.loads(pickle.dumps(cache)), lc.open(tmp_path / "site" / "cache"))
        pull(url, tmp_path / "copy")
        merge([url, make_other(tmp_path / "other")], tmp_path / "both")
        said = [repr(cache), cache.address, *refusals(url, tmp_path)]
        for command in (["info", url], ["info", url, "--json"], ["verify", url], ["diff", url, str(tmp_path / "copy")]):
            done = CliRunner().invoke(app, command)
            assert done.exit_code == 0, done.output
            said.append(done.output)
        (tmp_path / "site" / "cache" / cache.shards[0].path).unlink()
        (tmp_path / "local" / cache.shards[0].path).unlink()
        with pytest.raises(MissingFileError, match=cache.shards[0].path) as caught:
            cache.read_shard(0)
        said.append(everything_said(caught.value))
        with pytest.raises(RemoteError, match="access denied") as denied:
            lc.open(f"http://me:hunter3@{host}/cache")
        said.append(everything_said(denied.value))
        server.shutdown()
    with pytest.raises(RemoteError) as gone:
        lc.open(url)
    said += [everything_said(gone.value), *capsys.readouterr(), caplog.text]
    assert "hunter" not in "\n".join(said)
    for folder in ("local", "copy", "both"):
        assert not any(b"hunter" in content for content in files_of(tmp_path / folder).values())


def make_other(root: Path) -> Path:
    """A cache to merge with."""
    make_cache(root, range(10, 12))
    return root


def refusals(url: str, place: Path) -> list[str]:
    """Errors about a URL with a password."""
    jobs: list[Callable[[], object]] = [
        lambda: push(place / "copy", url),
        lambda: push(place / "copy", f"{url}@{'sha256:' + 'ab' * 32}"),
        lambda: catalogue(url),
        lambda: lc.open(f"{url}@nothing"),
        lambda: lc.open(f"{url}?signature=hunter2"),
        lambda: lc.open(url.replace("http:", "ftp:")),
        lambda: lc.open(url.replace("http:", "hf:")),
        lambda: pull(url, url),
        lambda: tag(url, "x"),
        lambda: merge([url, url], place / "never"),
        lambda: merge([place / "copy", url], url),
    ]
    said = []
    for job in jobs:
        with pytest.raises(lc.LogitCacheError) as caught:
            job()
        said.append(everything_said(caught.value))
    return said


def everything_said(error: BaseException | None) -> str:
    """The messages of an error and its causes, as --debug shows them."""
    return "" if error is None else f"{error!r} {error}\n" + everything_said(error.__cause__ or error.__context__)


class _Guarded(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer requests with the right password."""
        if self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:hunter2").decode():
            super().do_GET()
        else:
            self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""
