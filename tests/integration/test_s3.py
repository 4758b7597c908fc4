"""Caches in a real S3 server: push, open, pull, merge, select a part."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from share_tools import assert_same_content, files_of, make_cache, s3

import logitcache as lc
from logitcache.cache.opening import verify
from logitcache.cache.selection import Selection
from logitcache.errors import (
    ConfigError,
    OutputExistsError,
)
from logitcache.format.formats import ShardFormatName
from logitcache.share.merging import merge
from logitcache.share.pulling import pull
from logitcache.share.pushing import push

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


def test_pull_continues_and_repairs(s3: S3Server, tmp_path: Path) -> None:
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
