"""What a batch holds: the right tokens, targets and labels in the right places, packed or not."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from cache_builder import make_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cache import MemoryCache

from logitcache.errors import ConfigError, CorruptCacheError, TargetsError
from logitcache.format.arrays import ShardArrays
from logitcache.stream import Batch, Selection, stream
from logitcache.stream.prefetch import prefetched
from logitcache.stream.prepared import keep_targets
from logitcache.stream.rows import best_fit


def expected_rows(cache: MemoryCache) -> dict[int, ShardArrays]:
    """Each sequence's number in the cache → its shard."""
    rows = {}
    for shard in cache._shards:
        for start in shard.offsets_S1[:-1]:
            rows[int(shard.token_ids_L[start])] = shard
    return rows


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 500),
    batch_size=st.integers(1, 7),
    pack_tokens=st.one_of(st.none(), st.integers(8, 40)),
    world_size=st.integers(1, 3),
)
def test_every_target_is_at_its_own_token(seed: int, batch_size: int, pack_tokens: int | None, world_size: int) -> None:
    cache = MemoryCache.random(shards=4, largest=5, longest=8, seed=seed)
    by_first = expected_rows(cache)
    met = 0
    for rank in range(world_size):
        batches = stream(
            cache, batch_size=batch_size, pack_tokens=pack_tokens, rank=rank, world_size=world_size, prefetch=0
        )
        for batch in batches:
            met += check(batch, by_first)
    assert met == sum(shard.targets for shard in cache._shards)


def check(batch: Batch, by_first: dict[int, ShardArrays]) -> int:
    """Compare each target of a batch with its shard; returns how many there were."""
    tokens = batch.input_ids.view(-1)
    positions = batch.position_ids.view(-1)
    for row, index in enumerate(batch.target_index.tolist()):
        offset = int(positions[index])
        shard = by_first[int(tokens[index - offset])]
        start = int(np.flatnonzero(shard.token_ids_L == int(tokens[index - offset]))[0])
        assert shard.target_mask_L[start + offset]
        target = int(shard.target_mask_L[: start + offset].sum())
        assert batch.labels[row] == shard.token_ids_L[start + offset + 1]
        assert batch.labels[row] == tokens[index + 1]
        assert batch.targets.ids[row].tolist() == shard.topk_ids_NK[target].tolist()
        assert torch.equal(batch.targets.logprobs[row], torch.from_numpy(shard.topk_logprobs_NK[target]))
        assert batch.targets.residual_logprob[row] == float(shard.residual_logprob_N[target])
    return len(batch.target_index)


def test_the_targets_of_a_step_are_counted_over_all_its_parts() -> None:
    cache = MemoryCache.random(shards=4, largest=5, longest=8, seed=1)
    for world_size in (1, 2, 3):
        counted: dict[int, int] = {}
        stated: dict[int, int] = {}
        for rank in range(world_size):
            for batch in stream(cache, batch_size=5, micro_batch_size=1, rank=rank, world_size=world_size):
                counted[batch.step] = counted.get(batch.step, 0) + len(batch.target_index)
                stated[batch.step] = batch.batch_targets
        assert counted == stated


def test_padding_stays_within_the_range_of_positions() -> None:
    """The padding of a row of several documents may be long: its positions must be inside the range of learned ones."""
    cache = MemoryCache.random(shards=4, largest=9, longest=8, seed=2)
    for batch in stream(cache, batch_size=4, pack_tokens=60):
        assert int(batch.position_ids.max()) < 8


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), max_size=60), extra=st.integers(0, 30))
def test_packed_rows_keep_the_limit_and_hold_all_sequences(lengths: list[int], extra: int) -> None:
    budget = max([1, *lengths]) + extra
    rows = best_fit(np.array(lengths, dtype=np.int64), budget)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= budget for row in rows)
    # No two rows would fit into one: that is what best fit promises.
    fill = sorted(sum(lengths[item] for item in row) for row in rows)
    assert len(fill) < 2 or fill[0] + fill[1] > budget


def test_a_sequence_longer_than_pack_tokens_is_refused() -> None:
    cache = MemoryCache.random(shards=2, largest=5, longest=8, seed=1)
    with pytest.raises(ConfigError, match="pack_tokens is 4, but the cache holds a sequence of"):
        stream(cache, pack_tokens=4).steps(0)


def test_statistics_in_some_shards_only_are_an_error() -> None:
    arrays = [make_arrays(number, (5, 5), vocab=600, k=5, statistics=number == 0) for number in range(2)]
    cache = MemoryCache(arrays, "sha256:some")
    with pytest.raises(CorruptCacheError, match="statistics that another one lacks"):
        list(stream(cache, batch_size=4, shuffle=False))


def test_an_empty_cache_is_refused() -> None:
    with pytest.raises(TargetsError, match="no sequences"):
        stream(MemoryCache([], "sha256:none"))


def known(shard: ShardArrays, limit: int) -> int:
    """Positions whose targets, label and tokens so far are all below the limit."""
    count = 0
    for start, stop in zip(shard.offsets_S1, shard.offsets_S1[1:], strict=False):
        for place in range(start, stop - 1):
            target = int(shard.target_mask_L[:place].sum())
            named = [*shard.token_ids_L[start : place + 2], *shard.topk_ids_NK[target : target + 1].flat]
            count += bool(shard.target_mask_L[place]) and max(named) < limit
    return count


@pytest.mark.parametrize("limit", [30_000, 45_000])
def test_a_smaller_vocabulary_leaves_out_positions_and_keeps_the_others_in_place(limit: int) -> None:
    cache = MemoryCache.random(shards=6, largest=9, longest=8, seed=4, first_word=100)
    by_first = expected_rows(cache)
    kept = sum(known(shard, limit) for shard in cache._shards)
    assert 0 < kept < sum(int((shard.topk_ids_NK < limit).all(1).sum()) for shard in cache._shards)
    batches = list(stream(cache, batch_size=3, vocab_limit=limit))
    assert sum(len(batch.target_index) for batch in batches) == kept
    assert sum(batch.batch_targets for batch in batches) == kept
    assert all(int(batch.targets.ids.max()) < limit for batch in batches if len(batch.targets))
    assert all(int(batch.input_ids.max()) < limit for batch in batches)
    assert sum(check(batch, by_first) for batch in batches) == kept


@pytest.mark.parametrize(
    "selection",
    [
        Selection(min_confidence=0.1),
        Selection(max_confidence=0.1),
        Selection(max_entropy=1.0),
        Selection(min_mass=0.5, max_confidence=0.18),
    ],
)
def test_selected_positions_are_those_that_meet_the_condition(selection: Selection) -> None:
    cache = MemoryCache.random(shards=3, largest=5, longest=8, seed=4)
    by_first = expected_rows(cache)
    wanted = 0
    for shard in cache._shards:
        for logprobs, rest in zip(shard.topk_logprobs_NK.tolist(), shard.residual_logprob_N.tolist(), strict=True):
            events = [*logprobs, rest]
            wanted += (
                1 - math.exp(rest) >= selection.min_mass
                and selection.min_confidence <= math.exp(logprobs[0]) <= selection.max_confidence
                and (
                    selection.max_entropy is None
                    or -sum(math.exp(value) * value for value in events) <= selection.max_entropy
                )
            )
    batches = list(stream(cache, batch_size=3, selection=selection))
    total = sum(shard.targets for shard in cache._shards)
    assert 0 < wanted < total
    assert sum(check(batch, by_first) for batch in batches) == wanted
    assert sum(batch.batch_targets for batch in batches) == wanted
    assert sum(batch.tokens for batch in batches) == sum(shard.tokens for shard in cache._shards)


def test_conditions_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_mass = 2"):
        Selection(min_mass=2)
    with pytest.raises(ConfigError, match="max_entropy = -1"):
        Selection(max_entropy=-1)


def test_dropping_targets_keeps_the_others_in_place() -> None:
    shard = MemoryCache.random(shards=1, largest=5, longest=8, seed=4)._shards[0]
    keep = np.arange(shard.targets) % 2 == 0
    less = keep_targets(shard, keep)
    assert less.targets == int(keep.sum())
    assert np.array_equal(np.flatnonzero(less.target_mask_L), np.flatnonzero(shard.target_mask_L)[keep])
    assert less.tokens == shard.tokens


class Broken(MemoryCache):
    """A cache whose last shard is damaged."""

    def read_shard(self, index: int) -> ShardArrays:
        if index == len(self.shards) - 1:
            raise CorruptCacheError("shard 3 is damaged")
        return super().read_shard(index)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_an_error_in_a_thread_reaches_the_consumer(prefetch: int) -> None:
    whole = MemoryCache.random(shards=4, largest=5, longest=8, seed=1)
    broken = Broken(whole._shards, whole.digest)
    with pytest.raises(CorruptCacheError, match="shard 3 is damaged"):
        list(stream(broken, window_tokens=1, prefetch=prefetch))


def test_an_abandoned_stream_stops_its_threads() -> None:
    cache = MemoryCache.random(shards=6, largest=5, longest=8, seed=1)
    before = threading.active_count()
    iterator = iter(stream(cache, batch_size=1, epochs=None, prefetch=2, window_tokens=20))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_prefetching_makes_no_more_than_asked() -> None:
    made = []

    def items():  # type: ignore[no-untyped-def]
        for number in range(100):
            made.append(number)
            yield number

    iterator = prefetched(items(), 3)
    assert next(iterator) == 0
    time.sleep(0.3)
    assert len(made) <= 6
    assert list(iterator) == list(range(1, 100))


def test_memory_holds_a_few_windows_however_large_the_cache() -> None:
    live: list[weakref.ref[ShardArrays]] = []
    most = 0

    class Watched(MemoryCache):
        def read_shard(self, index: int) -> ShardArrays:
            nonlocal most
            shard = super().read_shard(index)
            residual = shard.residual_logprob_N.copy()
            live.append(weakref.ref(residual))
            most = max(most, sum(one() is not None for one in live))
            return replace(shard, residual_logprob_N=residual)

    whole = MemoryCache.random(shards=60, largest=3, longest=8, seed=1)
    for _ in stream(Watched(whole._shards, whole.digest), batch_size=2, window_tokens=1, epochs=3, prefetch=0):
        pass
    assert len(live) == 180
    # Windows of one shard here: two that a batch spans, one ahead, and what the batch before still holds.
    assert most <= 6


def test_labels_that_were_changed_are_looked_at_again() -> None:
    """Also through numpy, whose changes torch doesn't count; and if the batch is copied after that."""
    cache = MemoryCache.random(shards=2, largest=9, longest=8, seed=2)
    changes: list[Callable[[torch.Tensor], None]] = [
        lambda labels: labels[:1].fill_(-100),
        lambda labels: labels.numpy()[:1].fill(-100),
        lambda labels: labels.data[:1].fill_(-100),
    ]
    for change in changes:
        batch = next(iter(stream(cache, batch_size=2)))
        assert batch.label_range == (int(batch.labels.min()), int(batch.labels.max()))
        change(batch.labels)
        for changed in (batch, batch.to("cpu")):
            assert changed.label_range == (-100, int(batch.labels.max()))
