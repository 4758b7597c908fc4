"""The work plan depends only on the input and the settings, and batches have little padding."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from logitcache.dump.plan import cut_into_shards
from logitcache.engines.batches import cut_into_batches

lengths_lists = st.lists(st.integers(2, 300), min_size=1, max_size=200)


@given(lengths_lists, st.integers(1, 2000))
def test_shards_hold_every_sequence_once(lengths: list[int], shard_tokens: int) -> None:
    bounds = cut_into_shards(np.asarray(lengths), shard_tokens)
    assert bounds[0] == 0
    assert bounds[-1] == len(lengths)
    assert np.all(np.diff(bounds) > 0)
    for a, b in itertools.pairwise(bounds):
        # Full, but not without its last sequence.
        assert sum(lengths[a : b - 1]) < shard_tokens
        assert b == len(lengths) or sum(lengths[a:b]) >= shard_tokens


@given(lengths_lists, lengths_lists, st.integers(1, 2000))
def test_more_input_leaves_full_shards_as_they_were(lengths: list[int], more: list[int], shard_tokens: int) -> None:
    before = cut_into_shards(np.asarray(lengths), shard_tokens)
    after = cut_into_shards(np.asarray(lengths + more), shard_tokens)
    assert after[: len(before) - 1].tolist() == before[:-1].tolist()


@given(lengths_lists, st.integers(1, 2000))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], batch_tokens: int) -> None:
    batches = cut_into_batches(lengths, batch_tokens)
    assert sorted(s for batch in batches for s in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[s] for s in batch)
        assert lengths[batch[0]] == longest
        assert len(batch) == 1 or len(batch) * longest <= batch_tokens


def test_padding_stays_small_on_uneven_rows() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 2000).astype(int).clip(2, 2048).tolist()
    batches = cut_into_batches(lengths, 16_384)
    filled = sum(len(batch) * lengths[batch[0]] for batch in batches)
    assert filled / sum(lengths) < 1.1
