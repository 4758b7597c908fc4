"""The order of samples: fixed by seed, epoch and cache alone, for any ranks, workers, threads and restarts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cache import MemoryCache
from stream_steps import WORLDS, Settings, global_steps, resumed_steps, sequence_ids, steps_of
from torch.utils.data import DataLoader

from logitcache.errors import ConfigError, ResumeMismatchError
from logitcache.stream import Order, stream
from logitcache.stream.order import ShardSizes

caches = st.builds(
    MemoryCache.random,
    shards=st.integers(1, 6),
    largest=st.integers(1, 5),
    longest=st.integers(2, 9),
    seed=st.integers(0, 1000),
)
choices = st.builds(
    Settings,
    batch_size=st.integers(1, 9),
    micro_batch_size=st.one_of(st.none(), st.integers(1, 4)),
    pack_tokens=st.one_of(st.none(), st.integers(9, 30)),
    seed=st.integers(0, 5),
    window_tokens=st.integers(1, 60),
    group_by_length=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(cache=caches, chosen=choices)
def test_every_world_size_sees_the_same_global_batches(cache: MemoryCache, chosen: Settings) -> None:
    alone = global_steps(cache, chosen, 1)
    for world_size in WORLDS[1:]:
        assert global_steps(cache, chosen, world_size) == alone


@settings(max_examples=60, deadline=None)
@given(cache=caches, chosen=choices)
def test_each_epoch_holds_each_sequence_once(cache: MemoryCache, chosen: Settings) -> None:
    for epoch in range(chosen.epochs):
        seen = [n for at, _, numbers in steps_of(chosen.stream(cache)) if at == epoch for n in numbers]
        assert sorted(seen) == list(range(cache.sequences))


@settings(max_examples=60, deadline=None)
@given(cache=caches, chosen=choices, data=st.data())
def test_resuming_anywhere_with_another_topology_changes_nothing(
    cache: MemoryCache, chosen: Settings, data: st.DataObject
) -> None:
    whole = global_steps(cache, chosen, 1)
    done = data.draw(st.integers(0, len(whole)), label="steps done")
    before, after = data.draw(st.sampled_from(WORLDS)), data.draw(st.sampled_from(WORLDS))
    assert resumed_steps(cache, chosen, done, before, after) == whole[done:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
def test_workers_change_nothing(workers: int) -> None:
    cache = MemoryCache.random(shards=5, largest=6, longest=12, seed=3)
    chosen = Settings(4, micro_batch_size=2, pack_tokens=None, seed=1, window_tokens=40, group_by_length=True)
    loader = DataLoader(chosen.stream(cache), batch_size=None, num_workers=workers)
    delivered, alone = list(loader), list(chosen.stream(cache))
    assert [sequence_ids(batch) for batch in delivered] == [sequence_ids(batch) for batch in alone]
    assert steps_of(iter(delivered)) == steps_of(iter(alone))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("taken", [1, 5, 9])
def test_a_stateful_dataloader_continues_where_it_stopped(workers: int, taken: int) -> None:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    cache = MemoryCache.random(shards=5, largest=6, longest=12, seed=3)
    chosen = Settings(batch_size=4, micro_batch_size=2, pack_tokens=None, seed=1, window_tokens=40)

    def loader() -> Any:
        return loaders.StatefulDataLoader(chosen.stream(cache), batch_size=None, num_workers=workers)

    whole = [sequence_ids(batch) for batch in loader()]
    halted = loader()
    iterator = iter(halted)
    for _ in range(taken):
        next(iterator)
    state = halted.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert [sequence_ids(batch) for batch in resumed] == whole[taken:]


@pytest.mark.parametrize("prefetch", [0, 1, 7])
def test_threads_change_nothing(prefetch: int) -> None:
    cache = MemoryCache.random(shards=5, largest=6, longest=12, seed=3)
    chosen = Settings(batch_size=4, micro_batch_size=2, pack_tokens=20, seed=1, window_tokens=40)
    assert steps_of(chosen.stream(cache, prefetch=prefetch)) == steps_of(chosen.stream(cache))


def test_the_state_counts_delivered_batches_and_not_prefetched_ones() -> None:
    cache = MemoryCache.random(shards=4, largest=6, longest=12, seed=3)
    chosen = Settings(batch_size=3, micro_batch_size=None, pack_tokens=None, seed=1, window_tokens=40)
    ahead = chosen.stream(cache, prefetch=5)
    iterator = iter(ahead)
    next(iterator)
    assert ahead.state_dict()["samples_consumed"] == 3
    iterator.close()


@pytest.mark.parametrize("grouped", [False, True])
def test_a_state_inside_a_step_continues_with_the_next_micro_batch(grouped: bool) -> None:
    cache = MemoryCache.random(shards=4, largest=6, longest=12, seed=3)
    chosen = Settings(4, micro_batch_size=1, pack_tokens=None, seed=1, window_tokens=40, group_by_length=grouped)
    whole = [sequence_ids(batch) for batch in chosen.stream(cache)]
    half = chosen.stream(cache)
    iterator = iter(half)
    for _ in range(6):
        next(iterator)
    state = half.state_dict()
    assert state["part"] == 2
    resumed = chosen.stream(cache)
    resumed.load_state_dict(state)
    assert [sequence_ids(batch) for batch in resumed] == whole[6:]
    with pytest.raises(ResumeMismatchError, match="inside a step"):
        chosen.stream(cache, 0, 2).load_state_dict(state)
    # As many parts, of other sizes: rows would be left out.
    state = stream(cache, batch_size=4, micro_batch_size=2).state_dict() | {"part": 1}
    for size, micro in ((4, 3), (3, 2)):
        with pytest.raises(ResumeMismatchError, match="of the same size"):
            stream(cache, batch_size=size, micro_batch_size=micro).load_state_dict(state)
    # The same sizes, with other rows in each part.
    with pytest.raises(ResumeMismatchError, match="divided in the same way"):
        stream(cache, batch_size=4, micro_batch_size=2, group_by_length=True).load_state_dict(state)


def test_iterating_again_gives_the_next_epochs() -> None:
    cache = MemoryCache.random(shards=4, largest=6, longest=12, seed=3)
    chosen = Settings(batch_size=4, micro_batch_size=None, pack_tokens=None, seed=1, window_tokens=40, epochs=4)
    whole = steps_of(chosen.stream(cache))
    again = stream(cache, batch_size=4, seed=1, window_tokens=40, epochs=2)
    assert steps_of(again) + steps_of(again) == whole


def test_order_depends_on_seed_epoch_and_cache() -> None:
    sizes = ShardSizes("sha256:a", np.array([7, 9, 4]), np.array([70, 90, 40]))
    other = ShardSizes("sha256:b", sizes.sequences_S, sizes.tokens_S)

    def first_window(seed: int, epoch: int, of: ShardSizes) -> list[list[int]]:
        return Order(seed).epoch(of, epoch).window_samples(0).tolist()

    assert first_window(0, 0, sizes) == first_window(0, 0, sizes)
    orders = [first_window(*key) for key in ((0, 0, sizes), (1, 0, sizes), (0, 1, sizes), (0, 0, other))]
    assert all(one != two for number, one in enumerate(orders) for two in orders[:number])


def test_order_is_pinned() -> None:
    """The order may never change between versions: a run that is resumed after an upgrade relies on it."""
    sizes = ShardSizes("sha256:pinned", np.array([3, 2, 4]), np.array([30, 20, 40]))
    order = Order(seed=7, window_tokens=50).epoch(sizes, 2)
    assert [order.window_samples(window).tolist() for window in range(order.windows)] == PINNED


def test_windows_are_bounded_and_samples_mix_across_shards() -> None:
    sizes = ShardSizes("sha256:c", np.full(1000, 10), np.full(1000, 100))
    order = Order(seed=0, window_tokens=1000).epoch(sizes, 0)
    assert order.windows == 100
    assert all(len(order.window_shards(window)) == 10 for window in range(order.windows))
    mixed = order.window_samples(0)[:10, 0]
    assert len(set(mixed.tolist())) > 3


def test_a_sample_of_a_million_shards_is_found_directly() -> None:
    sizes = ShardSizes("sha256:d", np.full(1_000_000, 100), np.full(1_000_000, 60_000))
    order = Order(seed=0).epoch(sizes, 0)
    last = order.window_of(order.samples - 1)
    assert last == order.windows - 1
    assert len(order.window_samples(last)) <= 1000


@pytest.mark.parametrize("field", ["batch_size", "micro_batch_size", "pack_tokens", "world_size"])
def test_sizes_below_one_are_refused(field: str) -> None:
    cache = MemoryCache.random(shards=1, largest=2, longest=4, seed=0)
    with pytest.raises(ConfigError, match=f"{field} is 0"):
        stream(cache, **{field: 0})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"{field} is 2\.5"):
        stream(cache, **{field: 2.5})  # type: ignore[arg-type]
    for wrong in ({"epochs": 0}, {"epochs": -1}, {"prefetch": -1}):
        with pytest.raises(ConfigError, match="they must be at least 1 and 0"):
            stream(cache, **wrong)


def test_a_state_of_another_cache_or_order_is_refused() -> None:
    cache, other = (MemoryCache.random(shards=3, largest=4, longest=6, seed=seed) for seed in (1, 2))
    state = stream(cache, seed=1).state_dict()
    with pytest.raises(ResumeMismatchError, match="cache has changed"):
        stream(other, seed=1).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="seed was 1"):
        stream(cache, seed=2).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="version 99"):
        stream(cache, seed=1).load_state_dict({**state, "state_version": 99})


PINNED = [[[2, 1], [2, 3], [0, 1], [0, 0], [2, 0], [2, 2], [0, 2]], [[1, 0], [1, 1]]]
