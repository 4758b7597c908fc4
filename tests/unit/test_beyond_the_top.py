"""Entries beyond the teacher's top, in a cache: a sample of the tail, or a reference student's candidates."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_builder import build_cache, make_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import logitcache as lc
from logitcache.cache.convert import convert_cache
from logitcache.cache.verify import verify_cache
from logitcache.cli.main import app
from logitcache.errors import ConfigError, CorruptCacheError, TargetsError
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName, decode_shard, encode_shard
from logitcache.share.merging import merge
from logitcache.stream import Mixture
from logitcache.targets.beyond import Beyond

KINDS = ("tail_samples", "candidates")
FORMATS: tuple[ShardFormatName, ...] = ("zarr", "arrow")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(2, 20),
    count=st.integers(1, 19),
    known=st.sampled_from([1, 20, 40, 50]),
    scale=st.sampled_from([0.0, 2.0, 300.0]),
    forbidden=st.booleans(),
)
def test_candidates_are_the_references_best_beyond_the_top(
    seed: int, k: int, count: int, known: int, scale: float, forbidden: bool
) -> None:
    count = min(count, k - 1)
    generator = torch.Generator().manual_seed(seed)
    teacher, reference = torch.randn(5, 40, generator=generator), torch.randn(5, known, generator=generator) * scale
    if forbidden:
        reference[:, : known // 2] = -math.inf
    targets = lc.TopK.from_logits(teacher, k, candidates=count, reference=reference)
    ranked = lc.TopK.from_logits(teacher, k - count)
    assert (targets.k, targets.ranked, targets.candidates) == (k, k - count, count)
    assert torch.equal(targets.ids[:, : k - count], ranked.ids)
    ordered = targets.ids.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    assert (targets.logprobs[:, 1:] <= targets.logprobs[:, :-1]).all()
    torch.testing.assert_close(targets.logprobs, teacher.log_softmax(1).gather(1, targets.ids))
    # Whatever the reference knows and isn't listed, it likes less than each candidate that it knows.
    for row in range(5):
        listed = set(targets.ids[row].tolist())
        chosen = [i for i in targets.ids[row, k - count :].tolist() if i < known]
        left = [float(reference[row, i]) for i in range(min(known, 40)) if i not in listed]
        if left and chosen:
            assert min(float(reference[row, i]) for i in chosen) >= max(left)
        if max(left, default=-math.inf) > -math.inf:
            assert len(chosen) == count


def test_what_a_row_can_not_hold_is_refused() -> None:
    logits = torch.randn(3, 20)
    with pytest.raises(TargetsError, match=r"needs reference \[N, W\], a row for each"):
        lc.TopK.from_logits(logits, 5, candidates=2)
    with pytest.raises(TargetsError, match="needs reference"):
        lc.TopK.from_logits(logits, 5, candidates=2, reference=logits[:2])
    with pytest.raises(TargetsError, match="candidates 5 of K = 5 entries"):
        lc.TopK.from_logits(logits, 5, candidates=5, reference=logits)
    with pytest.raises(TargetsError, match="one or the other"):
        lc.TopK.from_logits(logits, 5, candidates=1, reference=logits, tail_samples=1, draws=torch.rand(3))


# In a cache


def cache_with(root: Path, seeds: range = range(2), shard_format: ShardFormatName = "zarr", **beyond: int) -> None:
    shards = [replace(make_arrays(seed), beyond=Beyond(**beyond)) for seed in seeds]
    build_cache(root, shard_format, shards, **beyond)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_shard_says_what_its_last_entries_are(shard_format: ShardFormatName, kind: str) -> None:
    arrays = make_arrays(0)
    payload = encode_shard(replace(arrays, beyond=Beyond(**{kind: 2})), Encoding(), shard_format)
    decoded = decode_shard(payload, shard_format)
    assert (getattr(decoded.beyond, kind), decoded.ranked) == (2, 3)
    assert kind.encode() in payload
    # Where there are none nothing is said: such shards are the bytes that they were before there were any.
    plain = encode_shard(arrays, Encoding(), shard_format)
    assert not any(name.encode() in plain for name in KINDS)
    with pytest.raises(TargetsError, match=f"{kind} 5 of K = 5 entries"):
        encode_shard(replace(arrays, beyond=Beyond(**{kind: 5})), Encoding(), shard_format)
    with pytest.raises(TargetsError, match="1 tail samples and 1 candidates: a row holds one or the other"):
        encode_shard(replace(arrays, beyond=Beyond(1, 1)), Encoding(), shard_format)


@pytest.mark.parametrize(
    ("kind", "told"), [("tail_samples", "2 drawn from the tail"), ("candidates", "2 candidates of a reference")]
)
def test_a_cache_keeps_it(tmp_path: Path, kind: str, told: str) -> None:
    cache_with(tmp_path / "cache", **{kind: 2})
    cache = lc.open(tmp_path / "cache")
    assert (cache.top_k, cache.ranked) == (5, 3)
    assert getattr(cache[3].targets, kind) == 2
    assert all(getattr(batch.targets, kind) == 2 for batch in lc.stream(cache, batch_size=2))
    assert verify_cache(tmp_path / "cache", deep=True).ok
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "cache")])
    assert f"top 3 and {told} of 300" in " ".join(shown.output.split())


def test_a_shard_that_contradicts_the_manifest_is_refused(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache", shards=[replace(make_arrays(0), beyond=Beyond(tail_samples=1))], tail_samples=2)
    with pytest.raises(CorruptCacheError, match="holds tail_samples = 1, the cache says 2"):
        lc.open(tmp_path / "cache")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_converting_keeps_them_all_or_cuts_them_all(tmp_path: Path, kind: str) -> None:
    cache_with(tmp_path / "cache", **{kind: 2})
    convert_cache(tmp_path / "cache", tmp_path / "arrow", shard_format="arrow")
    assert getattr(lc.open(tmp_path / "arrow")[3].targets, kind) == 2
    convert_cache(tmp_path / "cache", tmp_path / "cut", top_k=3)
    cut = lc.open(tmp_path / "cut")
    assert (cut.top_k, cut.ranked, getattr(cut[3].targets, kind)) == (3, 3, 0)
    assert kind not in json.loads((tmp_path / "cut" / "manifest.json").read_text())["provenance"]
    with pytest.raises(ConfigError, match="only the first 3 of the cache's 5 entries are the teacher's top; keep all"):
        convert_cache(tmp_path / "cache", tmp_path / "torn", top_k=4)
    assert not (tmp_path / "torn").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_merging_and_mixing(tmp_path: Path, kind: str) -> None:
    cache_with(tmp_path / "one", **{kind: 2})
    cache_with(tmp_path / "two", range(2, 4), **{kind: 2})
    cache_with(tmp_path / "whole", range(4, 6))
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both", duplicates="drop")
    assert lc.open(tmp_path / "both").ranked == 3
    with pytest.raises(lc.LogitCacheError, match=f"{kind.replace('_', ' ')} is 2 in one and 0 in the other"):
        merge([tmp_path / "one", tmp_path / "whole"], tmp_path / "none")
    one, two, whole = (lc.open(tmp_path / name) for name in ("one", "two", "whole"))
    assert getattr(next(iter(lc.stream([one, two], batch_size=2))).targets, kind) == 2
    mixture = Mixture([one, whole])
    shard = mixture.read_shard(0)
    assert (mixture.top_k, shard.k, shard.ranked) == (3, 3, 3)
    assert np.allclose(shard.residual_logprob_N, one.read_shard(0).top(3).residual_logprob_N)
