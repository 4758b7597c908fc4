"""Wrong arguments to push, pull, merge and others give one clear line, exit status 1, and nothing new on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from share_tools import make_cache
from typer.testing import CliRunner

from logitcache.cli.main import app
from logitcache.errors import LogitCacheError

pytestmark = pytest.mark.hostile

ROW = '{"prompt_token_ids": [5, 6], "prompt_logprobs": [null, {"6": {"logprob": -0.5}, "9": {"logprob": -2}}]}\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches, a store, and other files."""
    root = tmp_path_factory.mktemp("plä ce")
    make_cache(root / "a", range(3))
    make_cache(root / "b", range(3, 5))
    (root / "a file").write_text("hello")
    (root / "empty").mkdir()
    (root / "mine").mkdir()
    (root / "mine" / "thesis.tex").write_text("years of work")
    (root / "unlike").mkdir()
    (root / "unlike" / "manifest.json").write_text("<html>no cache</html>")
    (root / "rows.jsonl").write_text(ROW)
    (root / "bad.jsonl").write_text(ROW * 3 + "{\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("LOGITCACHE_CACHE_DIR", str(root / "local"))
        for command in (["push", "a", "file://{}/store@v1"], ["push", "b", "file://{}/store@v2"], ["keygen", "key"]):
            assert CliRunner().invoke(app, [part.format(root) for part in command]).exit_code == 0
    return root


IMPORT = ["import", "rows.jsonl", "--kind", "vllm", "--teacher", "t", "--top-k", "2", "--tokenizer", "TOKENIZER"]
CASES: list[tuple[list[str], str]] = [
    (["push", "a", "b"], "file:///its/whole/path"),
    (["push", "a", "store"], "not a URL"),
    (["push", "a", "file://store/x"], "names a host"),
    (["push", "a", "ftp://host/x"], "not a URL"),
    (["push", "a", "http://127.0.0.1:1/x"], "can only be read"),
    (["push", "a", "STORE@v2"], "--move-tag"),
    (["push", "a", "STORE@v 1"], "neither a tag"),
    (["push", "a", "file://ROOT/a file"], "can't be used as a store"),
    (["push", "a", "file://ROOT/a file/x"], "can't be used as a store"),
    (["push", "nowhere", "STORE@new"], "does not exist"),
    (["push", "a file", "STORE@new"], "is a file"),
    (["push", "empty", "STORE@new"], "no manifest.json"),
    (["push", "unlike", "STORE@new"], "manifest"),
    (["push", "nowhere", "file://ROOT/new"], "does not exist"),
    (["pull", "nowhere", "new"], "does not exist"),
    (["pull", "empty", "new"], "no manifest.json"),
    (["pull", "STORE", "new"], "name one as"),
    (["pull", "STORE@v3", "new"], "no tag 'v3'"),
    (["pull", "file://ROOT/nowhere", "new"], "does not exist"),
    (["pull", "STORE@v1", "mine"], "not empty"),
    (["pull", "STORE@v1", "b"], "another cache"),
    (["pull", "STORE@v1", "a file"], "there is a file where a directory is needed"),
    (["pull", "STORE@v1", "a file/new"], "there is a file where a directory is needed"),
    (["pull", "STORE@v1", "s3://bucket/x"], "is a URL"),
    (["pull", "STORE@v1", "new", "--shards", "3"], "no shard 3"),
    (["pull", "STORE@v1", "new", "--shards", "0:99999999999"], "no cache has more"),
    (["pull", "STORE@v1", "new", "--shards", "x"], "--shards"),
    (["pull", "STORE@v1", "new", "--sequences", "5:2"], "aren't a range"),
    (["pull", "STORE@v1", "new", "--tokens", "1"], "selects nothing"),
    (["pull", "STORE@v1", "new", "--tokens", "9", "--shards", "0"], "only one of"),
    (["pull", "STORE@v1", "new", "--trusted-keys", "key.pub"], "no signature"),
    (["pull", "STORE@v1", "new", "--trusted-keys", "nowhere"], "nowhere"),
    (["merge", "a", "--out", "new"], "two caches or more"),
    (["merge", "a", "a", "--out", "new"], "the same cache"),
    (["merge", "a", "nowhere", "--out", "new"], "does not exist"),
    (["merge", "a", "b", "--out", "a"], "another cache"),
    (["merge", "a", "b", "--out", "mine"], "not empty"),
    (["merge", "a", "b", "--out", "a file"], "there is a file where a directory is needed"),
    (["merge", "a", "b", "--out", "STORE@v1"], "--move-tag"),
    (["diff", "a", "nowhere"], "does not exist"),
    (["list", "nowhere"], "not a directory"),
    (["list", "STORE@v1"], "without @v1"),
    (["list", "https://host/x"], "can't list"),
    (["tag", "a", "x"], "not a URL"),
    (["tag", "STORE@v1", "bad name"], "neither a tag"),
    (["tag", "STORE@v1", "v2"], "--move-tag"),
    (["tag", "file://ROOT/new@v1", "x"], "does not exist"),
    (["sign", "a", "--key", "nowhere"], "nowhere"),
    (["sign", "a", "--key", "key.pub"], "no private key"),
    (["sign", "http://127.0.0.1:1/x", "--key", "key"], "can't read"),
    (["keygen", "a file"], "never overwritten"),
    (["keygen", "nowhere/key"], "nowhere"),
    (["export", "a", "a file"], "there already"),
    (["export", "a", "nowhere/x.parquet"], "no directory"),
    (["export", "a", "s3://bucket/x.parquet"], "is a URL"),
    (["export", "nowhere", "x.parquet"], "does not exist"),
    (["convert", "a", "--out", "s3://bucket/x", "--format", "arrow"], "is a URL"),
    ([*IMPORT, "--out", "a"], "already holds"),
    ([*IMPORT, "--out", "mine"], "not empty"),
    ([*IMPORT, "--out", "a file"], "there is a file where a directory is needed"),
    ([*IMPORT, "--out", "s3://bucket/x"], "is a URL"),
    ([*IMPORT, "--out", "new", "--teacher", "/home/me/teacher"], "local path"),
    ([*IMPORT, "--out", "new", "--kind", "openai"], "rows.jsonl line 1"),
    ([*IMPORT, "--out", "new", "--kind", "distillkit"], "compression_config.yaml"),
    ([*IMPORT, "--out", "new", "--top-k", "3"], "--top-k"),
    ([*IMPORT, "--out", "new", "--tokenizer", "empty"], "can't load the tokenizer"),
    (["import", "nowhere.jsonl", *IMPORT[2:], "--out", "new"], "nowhere.jsonl"),
    (["import", "a", *IMPORT[2:], "--out", "new"], "can't read a"),
    # Three shards are written before the fault is met.
    (["import", "bad.jsonl", *IMPORT[2:], "--out", "new", "--shard-tokens", "1"], "bad.jsonl line 4"),
]


@pytest.mark.parametrize(("command", "message"), CASES, ids=[" ".join(command) for command, _ in CASES])
def test_refused_in_one_line_and_nothing_is_left(
    place: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(place / "local"))
    monkeypatch.setenv("LOGITCACHE_TRIES", "1")
    names = {"TOKENIZER": str(tiny_llama_dir), "STORE": f"file://{place}/store", "ROOT": str(place)}
    for name, value in names.items():
        command = [part.replace(name, value) for part in command]
    before = listing(place)
    with pytest.raises(LogitCacheError) as caught:
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert listing(place) == before


def listing(root: Path) -> list[str]:
    """All files except those of the local cache."""
    return sorted(str(path) for path in root.rglob("*") if "local" not in path.relative_to(root).parts[:1])


def test_dry_runs_leave_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(place / "local"))
    before = listing(place)
    for command in (["push", "a", f"file://{place}/new@x"], ["pull", f"file://{place}/store@v1", "new"]):
        done = CliRunner().invoke(app, [*command, "--dry-run"], catch_exceptions=False)
        assert done.exit_code == 0
        assert "3 of 3 shards" in done.stdout
    assert listing(place) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_directories_that_may_not_be_written(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(tmp_path / "local"))
    (tmp_path / "sealed").mkdir(mode=0o555)
    sealed = str(tmp_path / "sealed")
    for command in (
        ["pull", "a", f"{sealed}/x"],
        ["merge", "a", "b", "--out", f"{sealed}/x"],
        ["push", "a", f"file://{sealed}/x"],
        ["export", "a", f"{sealed}/x.parquet"],
        ["keygen", f"{sealed}/key"],
    ):
        with pytest.raises(LogitCacheError, match=r"[Pp]ermission"):
            CliRunner().invoke(app, command, catch_exceptions=False)


def test_trusted_keys_may_be_anywhere_on_the_line(place: Path) -> None:
    """The real program: exit status 1, one line on stderr, nothing on stdout."""
    command = [str(Path(sys.executable).with_name("logitcache"))]
    for line in (["info", "--trusted-keys", "key.pub", "a"], ["info", "a", "--trusted-keys=key.pub"]):
        done = subprocess.run([*command, *line], cwd=place, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: a (sha256:")
        assert done.stderr.count("\n") == 1
