"""Sequences left out by length: this is decided before rows are divided over ranks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cache import MemoryCache
from stream_steps import WORLDS, Settings, global_steps, resumed_steps

from logitcache.errors import ConfigError, ResumeMismatchError, TargetsError
from logitcache.stream import stream

caches = st.builds(
    MemoryCache.random,
    shards=st.integers(1, 6),
    largest=st.integers(1, 5),
    longest=st.integers(5, 12),
    seed=st.integers(0, 1000),
)
choices = st.builds(
    Settings,
    batch_size=st.integers(1, 9),
    micro_batch_size=st.one_of(st.none(), st.integers(1, 4)),
    pack_tokens=st.one_of(st.none(), st.integers(12, 30)),
    seed=st.integers(0, 5),
    window_tokens=st.integers(1, 60),
    min_length=st.one_of(st.none(), st.integers(1, 4)),
    max_length=st.one_of(st.none(), st.integers(4, 12)),
)


def kept(cache: MemoryCache, chosen: Settings) -> list[int]:
    low, high = chosen.min_length or 0, chosen.max_length or 1 << 30
    lengths = [stop - start for shard in cache._shards for start, stop in zip(*ends(shard.offsets_S1), strict=True)]
    return [number for number, length in enumerate(lengths) if low <= length <= high]


def ends(offsets: list[int]) -> tuple[list[int], list[int]]:
    return offsets[:-1], offsets[1:]


@settings(max_examples=100, deadline=None)
@given(cache=caches, chosen=choices, data=st.data())
def test_each_epoch_holds_what_is_long_and_short_enough_and_resumes(
    cache: MemoryCache, chosen: Settings, data: st.DataObject
) -> None:
    expected = kept(cache, chosen)
    if not expected:
        with pytest.raises(TargetsError, match="leaves no sequence"):
            chosen.stream(cache)
        return
    whole = global_steps(cache, chosen, 1)
    for epoch in range(chosen.epochs):
        assert sorted(number for at, _, numbers in whole if at == epoch for number in numbers) == expected
        assert chosen.stream(cache).steps(epoch) == sum(at == epoch for at, _, _ in whole)
    before, after = data.draw(st.sampled_from(WORLDS)), data.draw(st.sampled_from(WORLDS))
    assert global_steps(cache, chosen, after) == whole
    done = data.draw(st.integers(0, len(whole)), label="steps done")
    assert resumed_steps(cache, chosen, done, before, after) == whole[done:]


def test_a_sequence_too_long_to_pack_can_be_left_out() -> None:
    cache = MemoryCache.random(shards=3, largest=6, longest=20, seed=1)
    with pytest.raises(ConfigError, match="leave such sequences out with max_length"):
        stream(cache, pack_tokens=10).steps(0)
    assert all(batch.input_ids.shape[1] <= 10 for batch in stream(cache, pack_tokens=10, max_length=10))


def test_a_state_under_another_filter_is_refused() -> None:
    cache = MemoryCache.random(shards=3, largest=6, longest=20, seed=1)
    state = stream(cache, min_length=3).state_dict()
    with pytest.raises(ResumeMismatchError, match="min_length was 3"):
        stream(cache).load_state_dict(state)
    # States of before there was a filter hold nothing about it.
    old = stream(cache).state_dict()
    old["order"] = {name: value for name, value in old["order"].items() if "length" not in name}
    stream(cache).load_state_dict(old)


@pytest.mark.parametrize(("low", "high"), [(0, None), (None, 0), (5, 4)])
def test_lengths_that_are_not_allowed(low: int | None, high: int | None) -> None:
    cache = MemoryCache.random(shards=1, largest=2, longest=4, seed=0)
    with pytest.raises(ConfigError, match="_length = "):
        stream(cache, min_length=low, max_length=high)
