"""Merging, comparing, cutting and signing caches in directories, without a store."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cache_builder import build_cache, make_arrays
from share_tools import assert_same_content, files_of, make_cache

import logitcache as lc
from logitcache.cache.compare import diff
from logitcache.cache.convert import convert_cache
from logitcache.cache.derive import keep_sequences
from logitcache.cache.selection import Selection
from logitcache.cache.signatures import check_trusted
from logitcache.cache.verify import verify_cache
from logitcache.errors import ConfigError, MergeError, OutputExistsError, SignatureError
from logitcache.format.arrays import ShardArrays
from logitcache.format.encoding import Encoding, Preset
from logitcache.format.formats import ShardFormatName, decode_shard, encode_shard
from logitcache.format.manifest import Teacher
from logitcache.share.merging import merge
from logitcache.share.pulling import pull
from logitcache.share.signing import sign
from logitcache.signing.keys import make_key


def test_merge_links_shards_and_keeps_order(tmp_path: Path) -> None:
    one, two = make_cache(tmp_path / "a", range(3)), make_cache(tmp_path / "b", range(3, 5))
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert (merged.sequences, merged.duplicates) == (15, 0)
    both = lc.open(tmp_path / "both")
    assert [item.digest for item in both] == [item.digest for name in "ab" for item in lc.open(tmp_path / name)]
    assert both.manifest.provenance.parents == (one, two)
    assert both.manifest.card.licence == "CC0-1.0"
    assert verify_cache(tmp_path / "both", deep=True).ok
    shard = both.shards[0].path
    assert os.path.samefile(tmp_path / "a" / shard, tmp_path / "both" / shard)
    # The same merge gives the same bytes.
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "again").transfer.digest == both.digest


def test_duplicates(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", range(3))
    lengths = (20, 5, 30)
    mixed = make_arrays(77, lengths)
    old = make_arrays(1, lengths)
    # A shard of which one sequence is known and two are new.
    part = keep_sequences(old, np.array([True, False, False]))
    joined = _join(part, mixed)
    build_cache(tmp_path / "b", "zarr", [joined, make_arrays(2, lengths)])
    with pytest.raises(MergeError, match="4 sequences occur more than once"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    dropped = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out", duplicates="drop")
    out = lc.open(tmp_path / "out")
    digests = [item.digest for item in out]
    assert len(set(digests)) == len(digests) == dropped.sequences
    new = {item.digest: item for item in lc.open(tmp_path / "b")}
    for item in out:
        if item.digest in new:
            assert item.targets.logprobs.equal(new[item.digest].targets.logprobs)
    kept = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "kept", duplicates="keep")
    assert kept.sequences == 9 + 7
    assert verify_cache(tmp_path / "out", deep=True).ok


def test_shards_that_are_equal_byte_for_byte(tmp_path: Path) -> None:
    """With ``keep``, such a shard is twice in the table and once on the disk; with ``drop``, once in the table."""
    make_cache(tmp_path / "a", range(4))
    make_cache(tmp_path / "b", range(2, 6))
    parts = [lc.open(tmp_path / name) for name in "ab"]
    kept = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "kept", duplicates="keep")
    both = lc.open(tmp_path / "kept")
    assert (kept.sequences, len(both), len(both.shards), kept.transfer.shards) == (24, 24, 8, 6)
    assert [item.digest for item in both] == [item.digest for part in parts for item in part]
    assert both.manifest.totals.tokens == sum(part.manifest.totals.tokens for part in parts)
    assert kept.transfer.bytes == sum(path.stat().st_size for path in (tmp_path / "kept" / "shards").iterdir())
    # What is made from it keeps them, too, and counts files once.
    part = pull(tmp_path / "kept", tmp_path / "part", Selection(shards=(2, 3, 4, 5)))
    assert (part.shards, part.moved_shards, len(lc.open(tmp_path / "part"))) == (2, 2, 12)
    convert_cache(both, tmp_path / "arrow", shard_format="arrow")
    assert [item.digest for item in lc.open(tmp_path / "arrow")] == [item.digest for item in both]
    assert diff(tmp_path / "kept", tmp_path / "a").sequences == {"common": 12, "only_first": 6, "only_second": 0}
    dropped = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "dropped", duplicates="drop")
    assert (dropped.sequences, dropped.duplicates, dropped.transfer.shards) == (18, 6, 6)
    # A shard that is left out whole needs no new file.
    assert files_of(tmp_path / "dropped" / "shards") == files_of(tmp_path / "kept" / "shards")
    # A cache may repeat itself; dropping finds that as well.
    make_cache(tmp_path / "c", range(6, 8))
    again = merge([tmp_path / "kept", tmp_path / "c"], tmp_path / "once", duplicates="drop")
    assert (again.sequences, again.duplicates) == (24, 6)
    for name in ("kept", "part", "arrow", "dropped", "once"):
        assert verify_cache(tmp_path / name, deep=True).ok


def test_differences_of_caches_are_named(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", range(2))
    other = Teacher(name="org/other", dtype="bfloat16", engine="transformers", weights_digest="sha256:" + "cd" * 32)
    make_cache(tmp_path / "b", range(2, 4), teacher=other, tokenizer_digest="sha256:" + "ef" * 32)
    with pytest.raises(MergeError) as caught:
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    for name in ("teacher weights", "teacher dtype", "tokenizer"):
        assert name in str(caught.value)
    with pytest.raises(MergeError, match="same cache"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "out")
    with pytest.raises(ConfigError, match="two caches"):
        merge([tmp_path / "a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", ["exact", "half", "compact", "tiny"])
@pytest.mark.parametrize("shard_format", ["zarr", "arrow"])
def test_cutting_a_shard_changes_no_value(preset: Preset, shard_format: ShardFormatName) -> None:
    encoding = Encoding(preset=preset)
    whole = decode_shard(
        encode_shard(make_arrays(5, (9, 4, 0, 12), statistics=True), encoding, shard_format), shard_format
    )
    for keep in ([True, False, True, True], [False, False, False, True]):
        part = keep_sequences(whole, np.array(keep))
        again = decode_shard(encode_shard(part, encoding, shard_format), shard_format)
        for name, values in part.columns().items():
            np.testing.assert_array_equal(getattr(again, name), values, err_msg=name)


def test_pull_from_a_directory_links(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", range(3))
    pull(tmp_path / "a", tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "a")
    pull(tmp_path / "a", tmp_path / "part", Selection(sequences=(1, 5)))
    assert_same_content(lc.open(tmp_path / "part"), lc.open(tmp_path / "a")[1:5])


def test_diff(tmp_path: Path) -> None:
    lengths = (20, 5, 30)
    shards = [make_arrays(seed, lengths) for seed in range(3)]
    build_cache(tmp_path / "a", "zarr", shards)
    changed = replace(shards[1], topk_logprobs_NK=shards[1].topk_logprobs_NK - np.float32(0.25))
    build_cache(tmp_path / "b", "zarr", [shards[0], changed], max_length=99)
    found = diff(tmp_path / "a", tmp_path / "b", values=True)
    assert not found.same
    assert found.shards == {"common": 1, "only_first": 2, "only_second": 1}
    assert found.fields["provenance.max_length"] == (512, 99)
    assert found.values is not None
    assert found.values.differing == 3
    assert found.values.top1 == 1.0
    assert found.values.largest == pytest.approx(0.25, abs=1 / 32)
    assert diff(tmp_path / "a", tmp_path / "a").same


def test_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = make_cache(tmp_path / "a", range(2))
    key = make_key(tmp_path / "team.key", "the team")
    make_key(tmp_path / "other.key")
    assert stat.S_IMODE((tmp_path / "team.key").stat().st_mode) == 0o600
    with pytest.raises(OutputExistsError, match="never overwritten"):
        make_key(tmp_path / "team.key")
    trusted, others = tmp_path / "team.key.pub", tmp_path / "other.key.pub"
    with pytest.raises(SignatureError, match=r"no signature by a trusted key \(the team\)"):
        check_trusted(lc.open(tmp_path / "a"), trusted)
    assert sign(tmp_path / "a", tmp_path / "team.key").name == key.name
    assert lc.open(tmp_path / "a").digest == digest
    assert verify_cache(tmp_path / "a").ok
    check_trusted(lc.open(tmp_path / "a"), trusted)
    with pytest.raises(SignatureError):
        check_trusted(lc.open(tmp_path / "a"), others)
    monkeypatch.setenv("LOGITCACHE_TRUSTED_KEYS", str(others))
    with pytest.raises(SignatureError):
        lc.open(tmp_path / "a")
    monkeypatch.setenv("LOGITCACHE_TRUSTED_KEYS", str(trusted))
    pull(tmp_path / "a", tmp_path / "copy", trusted_keys=trusted)
    lc.open(tmp_path / "copy")
    # A signature of another cache doesn't fit this one.
    monkeypatch.delenv("LOGITCACHE_TRUSTED_KEYS")
    make_cache(tmp_path / "b", range(5, 7))
    signatures = tmp_path / "b" / "signatures"
    signatures.mkdir()
    (signatures / f"{key.name}.sig").write_bytes((tmp_path / "a" / "signatures" / f"{key.name}.sig").read_bytes())
    with pytest.raises(SignatureError, match="doesn't fit"):
        check_trusted(lc.open(tmp_path / "b"), trusted)
    for name, content in (
        ("empty", ""),
        ("wrong", "ssh-ed25519 AAAA me"),
        ("short", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match="public key"):
            check_trusted(lc.open(tmp_path / "a"), tmp_path / name)
    with pytest.raises(ConfigError, match="private key"):
        sign(tmp_path / "a", trusted)


def _join(one: ShardArrays, other: ShardArrays) -> ShardArrays:
    fields = {name: np.concatenate([values, getattr(other, name)]) for name, values in one.columns().items()}
    fields["offsets_S1"] = np.concatenate([one.offsets_S1, other.offsets_S1[1:] + one.tokens])
    return replace(one, **fields)
