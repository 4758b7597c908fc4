"""A digest after the ``@`` selects one cache in every command that takes a URL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from share_tools import make_cache
from typer.testing import CliRunner

import logitcache as lc
from logitcache.cache.catalogue import catalogue
from logitcache.cache.compare import diff
from logitcache.cache.opening import verify
from logitcache.cache.reader import open_cache
from logitcache.cache.verify import verify_cache
from logitcache.cli.main import app
from logitcache.dump.to_store import dump_to
from logitcache.errors import CacheNotFoundError, ConfigError, CorruptCacheError, LogitCacheError
from logitcache.share.merging import merge
from logitcache.share.pulling import pull
from logitcache.share.pushing import push, tag
from logitcache.stream import stream


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A collection of two caches, of which ``latest`` is the second."""
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(tmp_path / "local"))
    monkeypatch.chdir(tmp_path)
    make_cache(tmp_path / "one", range(4))
    make_cache(tmp_path / "two", range(4, 6))
    url = f"file://{tmp_path}/store"
    push(tmp_path / "one", url, collection=True)
    push(tmp_path / "two", f"{url}@latest")
    return url


def test_every_command_takes_a_pin(store: str, tmp_path: Path) -> None:
    one = lc.open(tmp_path / "one")
    pinned = f"{store}@{one.digest}"
    assert lc.open(pinned).digest == one.digest != lc.open(store).digest
    assert lc.open(Path(pinned)).digest == one.digest
    assert verify(pinned, deep=True).digest == one.digest
    for of_directories in (open_cache, verify_cache):
        with pytest.raises(ConfigError, match="is a URL"):
            of_directories(pinned)
    assert len(list(stream(pinned, batch_size=len(one)))) == 1
    assert diff(pinned, "one").same
    assert pull(pinned, "copy").digest == one.digest
    assert merge([pinned, "two"], f"{store}@both").sequences == 18
    assert push(pinned, f"{store}-2@moved").digest == one.digest
    assert push("one", pinned).moved_shards == 0
    assert tag(pinned, "first") == one.digest
    commands = {
        "info": ["info", pinned],
        "verify": ["verify", pinned],
        "diff": ["diff", pinned, "one"],
        "convert": ["convert", pinned, "--out", "converted", "--format", "arrow"],
        "export": ["export", pinned, "one.parquet"],
        "sign": ["sign", pinned, "--key", "key"],
        "push": ["push", pinned, f"{store}-3"],
        "pull": ["pull", pinned, "part", "--shards", "0"],
    }
    assert CliRunner().invoke(app, ["keygen", "key"]).exit_code == 0
    found = {}
    for name, command in commands.items():
        done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        found[name] = json.loads(done.stdout)
    assert {found[name]["digest"] for name in ("info", "verify", "export", "push")} == {one.digest}
    assert found["info"]["path"] == pinned
    assert found["diff"]["same"]
    for made in ("converted", "part"):
        assert lc.open(made).manifest.provenance.parents == (one.digest,)


def test_wrong_pins(store: str, tmp_path: Path) -> None:
    unknown = "sha256:" + "ab" * 32
    for job in (lc.open, verify, lambda url: pull(url, "copy"), lambda url: tag(url, "x")):
        with pytest.raises(CacheNotFoundError, match=unknown):
            job(f"{store}@{unknown}")
    for job in (
        lambda: push("one", f"{store}@{unknown}"),
        lambda: merge(["one", "two"], f"{store}@{unknown}"),
        lambda: dump_to(f"{store}@{unknown}", {"teacher": "never loaded", "data": ["never read"]}),
        lambda: catalogue(f"{store}@{unknown}"),
        lambda: lc.open(f"{store}@sha256:1234"),
    ):
        with pytest.raises(ConfigError):
            job()
    assert {item.digest for item in catalogue(store)} == {lc.open(name).digest for name in ("one", "two")}


def test_pin_notices_what_was_altered(store: str, tmp_path: Path) -> None:
    """A valid manifest of another cache under the pinned digest is an error."""
    one, two = (lc.open(name).digest for name in ("one", "two"))
    mine, other = (tmp_path / "store" / "caches" / digest.removeprefix("sha256:") for digest in (one, two))
    for name in ("manifest.json", "manifest.sha256"):
        (mine / name).write_bytes((other / name).read_bytes())
    with pytest.raises(CorruptCacheError, match="was altered"):
        lc.open(f"{store}@{one}")
    with pytest.raises(LogitCacheError):
        pull(f"{store}@{one}", "copy")
    assert not Path("copy").exists()
