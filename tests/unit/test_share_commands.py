"""The commands that share caches, in this process, with a directory as the store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from share_tools import make_cache
from typer.testing import CliRunner

from logitcache.cli.main import app
from logitcache.errors import LogitCacheError, OutputExistsError, SignatureError

DIGITS = set("0123456789abcdef")


@pytest.fixture(autouse=True)
def _local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("LOGITCACHE_TRUSTED_KEYS", "")
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def run_json(*arguments: object) -> dict[str, Any]:
    found = json.loads(run(*arguments, "--json"))
    assert isinstance(found, dict)
    return found


def test_all_commands(tmp_path: Path) -> None:
    one, two = make_cache(tmp_path / "one", range(4)), make_cache(tmp_path / "two", range(4, 7))
    store = f"file://{tmp_path}/store"
    assert run_json("push", "one", f"{store}@one", "--dry-run")["moved_shards"] == 4
    assert run_json("push", "one", f"{store}@one")["digest"] == one
    assert "3 of 3 shards" in run("push", "two", f"{store}@two")
    with pytest.raises(OutputExistsError, match="--move-tag"):
        run("push", "two", f"{store}@one")

    assert {tag for item in run_json("list", store)["caches"] for tag in item["tags"]} == {"one", "two"}
    assert f"@{one[:19]}…" in run("list", store)
    assert "no caches" in run("list", tmp_path / "one" / "shards")
    # Whoever reads it through a pipe gets a line a cache, with every column whole.
    head, *rows = run("list", store).splitlines()[1:]
    assert head.split() == ["cache", "tags", "teacher", "K", "encoding", "tokens", "bytes", "date", "licence"]
    assert len(rows) == 2

    merged = run_json("merge", f"{store}@one", f"{store}@two", "--out", f"{store}@both")
    assert (merged["sequences"], merged["duplicates"], merged["moved_shards"]) == (21, 0, 0)
    assert "now names" in run("tag", f"{store}@both", "latest")
    assert run_json("info", store)["digest"] == merged["digest"]
    # A directory that is a collection lists like its URL.
    assert run_json("list", store.removeprefix("file://")) == run_json("list", store)
    assert run_json("verify", store)["ok"]

    assert run_json("diff", f"{store}@one", "one")["same"]
    assert "3 only in the second" in run("diff", "one", f"{store}@both", "--values")

    assert run_json("pull", store, "part", "--sequences", "2:8")["shards"] == 3
    assert run_json("pull", store, "two-shards", "--shards", "0,3")["shards"] == 2
    assert "pulled to" in run("pull", f"{store}@{two}", "copy")
    assert run_json("export", "copy", "copy.parquet")["sequences"] == 9


def test_signing(tmp_path: Path) -> None:
    make_cache(tmp_path / "one", range(2))
    make_cache(tmp_path / "two", range(2, 4))
    store = f"file://{tmp_path}/store"
    key = run_json("keygen", "team.key", "--comment", "the team")
    assert set(key["name"]) <= DIGITS
    assert "private key" in run("keygen", "other.key")
    assert run_json("sign", "one", "--key", "team.key")["key"] == key["name"]
    run("push", "one", f"{store}@one")
    run("push", "two", f"{store}@two")
    assert "signed" in run("sign", f"{store}@one", "--key", "other.key")
    run("pull", f"{store}@one", "copy", "--trusted-keys", "team.key.pub")
    assert len(list((tmp_path / "copy" / "signatures").iterdir())) == 2
    with pytest.raises(SignatureError, match="the team"):
        run("pull", f"{store}@two", "other", "--trusted-keys", "team.key.pub")
    try:
        run("--trusted-keys", "team.key.pub", "info", f"{store}@one")
        for command in ("info", "verify"):
            for place in (f"{store}@two", "two"):
                with pytest.raises(SignatureError):
                    run("--trusted-keys", "team.key.pub", command, place)
        run("--trusted-keys", "team.key.pub", "verify", "one")
        with pytest.raises(LogitCacheError, match=r"can't read nosuch\.pub"):
            run("--trusted-keys", "nosuch.pub", "list", store)
    finally:
        os.environ["LOGITCACHE_TRUSTED_KEYS"] = ""
