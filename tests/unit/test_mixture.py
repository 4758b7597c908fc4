"""Several caches as one: shares of tokens, the same order for every topology, and caches that can't be mixed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cache_builder import make_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cache import MemoryCache
from stream_steps import WORLDS, Settings, global_steps, resumed_steps, sequence_ids, steps_of
from torch.utils.data import DataLoader

from logitcache.errors import ConfigError, ResumeMismatchError, TargetsError, TokenizerMismatchError
from logitcache.stream import Mixture, stream
from logitcache.targets.topk import TopK

#: Sequences of component c are numbered from here on.
FIRST = (1, 10_001, 20_001)


def memory(component: int, shards: int, seed: int, largest: int = 5, k: int = 4) -> MemoryCache:
    return MemoryCache.random(shards=shards, largest=largest, longest=9, seed=seed, k=k, first_number=FIRST[component])


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    count = draw(st.integers(2, 3))
    caches = [memory(number, draw(st.integers(1, 6)), draw(st.integers(0, 500))) for number in range(count)]
    weights = st.lists(st.integers(0, 9), min_size=count, max_size=count).filter(any)
    return Mixture(caches, draw(st.one_of(st.none(), weights)))


choices = st.builds(
    Settings,
    batch_size=st.integers(1, 9),
    micro_batch_size=st.one_of(st.none(), st.integers(1, 4)),
    pack_tokens=st.one_of(st.none(), st.integers(9, 30)),
    seed=st.integers(0, 5),
    window_tokens=st.integers(1, 60),
    epochs=st.integers(1, 2),
    min_length=st.one_of(st.none(), st.just(3)),
)


def token_counts(cache: MemoryCache) -> dict[int, int]:
    """Tokens of each sequence, by the number that :func:`sequence_ids` gives."""
    counts = {}
    for shard in cache._shards:
        for start, stop in zip(shard.offsets_S1[:-1], shard.offsets_S1[1:], strict=True):
            counts[int(shard.token_ids_L[start]) - 1] = int(stop - start)
    return counts


def epochs_of(mixture: Mixture, chosen: Settings) -> list[list[int]]:
    """The sequences of each epoch."""
    epochs: list[list[int]] = [[] for _ in range(chosen.epochs)]
    for epoch, _, numbers in steps_of(chosen.stream(mixture)):
        epochs[epoch].extend(numbers)
    return epochs


@settings(max_examples=25, deadline=None)
@given(mixture=mixtures(), chosen=choices)
def test_every_world_size_sees_the_same_global_batches(mixture: Mixture, chosen: Settings) -> None:
    try:
        alone = global_steps(mixture, chosen, 1)
    except TargetsError:  # nothing of three tokens in one of the caches
        return
    for world_size in WORLDS[1:]:
        assert global_steps(mixture, chosen, world_size) == alone


@settings(max_examples=80, deadline=None)
@given(mixture=mixtures(), seed=st.integers(0, 9), window_tokens=st.integers(1, 80))
def test_shares_hold_to_within_a_shard_in_every_epoch(mixture: Mixture, seed: int, window_tokens: int) -> None:
    chosen = Settings(4, None, None, seed, window_tokens, epochs=4)
    tokens = [token_counts(cache) for cache in mixture.caches]  # type: ignore[arg-type]
    total = sum(sum(counts.values()) for counts in tokens)
    for epoch in epochs_of(mixture, chosen):
        for number, (counts, cache) in enumerate(zip(tokens, mixture.caches, strict=True)):
            taken = sum(counts[sequence] for sequence in epoch if sequence in counts)
            held = sum(counts.values())
            wanted = held if mixture.weights is None else mixture.weights[number] * total
            assert abs(taken - wanted) <= max(entry.tokens for entry in cache.shards) + 1


@settings(max_examples=60, deadline=None)
@given(mixture=mixtures(), seed=st.integers(0, 9), window_tokens=st.integers(1, 80))
def test_over_many_epochs_every_sequence_of_a_cache_is_used_equally_often(
    mixture: Mixture, seed: int, window_tokens: int
) -> None:
    seen = Counter(n for epoch in epochs_of(mixture, Settings(4, None, None, seed, window_tokens, 5)) for n in epoch)
    for number, cache in enumerate(mixture.caches):
        times = [seen[sequence] for sequence in token_counts(cache)]  # type: ignore[arg-type]
        assert max(times) - min(times) <= 1
        if mixture.weights is None:
            assert set(times) == {5}
        elif mixture.weights[number] == 0:
            assert set(times) == {0}


def test_every_window_has_the_shares_of_the_whole() -> None:
    """A small cache in a single shard with a large share must not be used all at once."""
    mixture = Mixture([memory(0, 1, 1, largest=400), memory(1, 60, 2, largest=100)], [0.3, 0.7])
    batches = list(stream(mixture, batch_size=64, window_tokens=2000))
    assert len(batches) > 10
    shares = [np.mean([number < FIRST[1] - 1 for number in sequence_ids(batch)]) for batch in batches]
    assert all(0.1 < share < 0.5 for share in shares)


@settings(max_examples=60, deadline=None)
@given(mixture=mixtures(), chosen=choices, data=st.data())
def test_resuming_anywhere_with_another_topology_changes_nothing(
    mixture: Mixture, chosen: Settings, data: st.DataObject
) -> None:
    try:
        whole = global_steps(mixture, chosen, 1)
    except TargetsError:
        return
    done = data.draw(st.integers(0, len(whole)), label="steps done")
    before, after = data.draw(st.sampled_from(WORLDS)), data.draw(st.sampled_from(WORLDS))
    assert resumed_steps(mixture, chosen, done, before, after) == whole[done:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_threads_change_nothing() -> None:
    mixture = Mixture([memory(0, 3, 1), memory(1, 4, 2)], [1, 2])
    chosen = Settings(4, 2, None, 1, 40, min_length=3)
    loader = DataLoader(chosen.stream(mixture), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    alone = steps_of(chosen.stream(mixture))
    assert steps_of(loader) == alone
    assert steps_of(chosen.stream(mixture, prefetch=3)) == alone


def test_the_digest_depends_on_caches_and_weights_and_states_of_other_mixtures_are_refused() -> None:
    one, two = memory(0, 2, 1), memory(1, 3, 2)
    digests = [
        Mixture(caches, weights).digest
        for caches, weights in (([one, two], None), ([two, one], None), ([one, two], [1, 1]), ([one, two], [1, 2]))
    ]
    assert len(set(digests)) == 4
    assert Mixture([one, two], [7, 3]).digest == Mixture([one, two], [0.7, 0.3]).digest
    state = stream([one, two], weights=[1, 2]).state_dict()
    assert state["manifest_digest"] == digests[3]
    with pytest.raises(ResumeMismatchError, match="cache has changed"):
        stream([one, two], weights=[1, 1]).load_state_dict(state)


def test_the_order_of_a_mixture_is_pinned() -> None:
    """It may never change between versions: a run that is resumed after an upgrade relies on it."""
    mixture = Mixture([memory(0, 2, 1, largest=3), memory(1, 3, 2, largest=3)], [1, 3])
    assert epochs_of(mixture, Settings(4, None, None, 7, 12)) == PINNED


def test_a_list_of_one_cache_is_that_cache() -> None:
    alone = memory(0, 3, 1)
    assert steps_of(stream([alone], weights=[5])) == steps_of(stream(alone))


def test_the_smallest_k_is_taken_and_what_is_dropped_joins_the_residual() -> None:
    wide, narrow = memory(0, 2, 1, k=6), memory(1, 2, 2, k=3)
    mixture = Mixture([wide, narrow])
    assert mixture.top_k == 3
    assert all(batch.targets.k == 3 for batch in stream(mixture))
    shard = wide.read_shard(0)
    whole = TopK(
        torch.from_numpy(shard.topk_ids_NK.astype(np.int64)),
        torch.from_numpy(shard.topk_logprobs_NK),
        torch.from_numpy(shard.residual_logprob_N),
        shard.vocab_size,
    )
    expected, found = whole.top(3), mixture.read_shard(0)
    assert np.array_equal(found.topk_ids_NK, expected.ids.numpy())
    assert np.array_equal(found.topk_logprobs_NK, expected.logprobs.numpy())
    assert np.allclose(found.residual_logprob_N, expected.residual_logprob.numpy(), atol=1e-6)
    nothing = replace(shard, topk_logprobs_NK=np.where(np.arange(6) < 3, shard.topk_logprobs_NK, -np.inf))
    assert np.allclose(nothing.top(3).residual_logprob_N, shard.residual_logprob_N)


def test_statistics_are_kept_only_if_all_caches_hold_them() -> None:
    one, two = memory(0, 2, 1), memory(1, 2, 2)
    one._shards = [replace(s, logit_std_N=np.ones(s.targets, np.float32)) for s in one._shards]
    assert all(batch.targets.logit_std is None for batch in stream([one, two]))
    two._shards = [replace(s, logit_std_N=np.ones(s.targets, np.float32)) for s in two._shards]
    assert all(batch.targets.logit_std is not None for batch in stream([one, two]))


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_are_not_allowed(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        stream([memory(0, 2, 1), memory(1, 2, 2)], weights=weights)


def test_weights_of_any_size_give_every_cache_its_part() -> None:
    caches = [memory(0, 2, 1), memory(1, 2, 2)]
    assert stream(caches, weights=[1e308, 1e308]).cache.weights == (0.5, 0.5)
    rare = Mixture(caches, [1.0, 1e-9])
    assert min(rare.quotas(stream(rare).sizes)) == 1


def test_caches_without_a_token_give_nothing() -> None:
    caches = [MemoryCache([make_arrays(number, (0, 0))], f"sha256:{number}") for number in range(2)]
    assert sum(batch.tokens for batch in stream(caches)) == 0


def test_caches_that_can_not_be_mixed_are_refused() -> None:
    one, two = memory(0, 2, 1), memory(1, 2, 2)
    two._shards = [replace(shard, vocab_size=60_000) for shard in two._shards]
    with pytest.raises(TokenizerMismatchError, match="vocab_size is 50000 in sha256:1-1 and 60000"):
        stream([one, two])
    for name, cache in (("a", one), ("b", memory(1, 2, 2))):
        cache.manifest = SimpleNamespace(provenance=SimpleNamespace(tokenizer_digest=name))  # type: ignore[attr-defined]
        if name == "b":
            with pytest.raises(TokenizerMismatchError, match="tokenizer is a in"):
                stream([one, cache])
    with pytest.raises(ConfigError, match="named twice"):
        stream([one, one])
    with pytest.raises(ConfigError, match="list is empty"):
        stream([])
    with pytest.raises(ConfigError, match="several caches"):
        stream(one, weights=[1])
    with pytest.raises(TargetsError, match="no sequences"):
        stream([one, MemoryCache([], "sha256:none")])
    longer = MemoryCache.random(shards=1, largest=3, longest=30, seed=8, first_number=FIRST[2])
    with pytest.raises(TargetsError, match=r"cache 1 of the mixture has weight 0\.5, but no sequences"):
        stream([memory(1, 2, 2), longer], weights=[1, 1], min_length=10)


PINNED = [
    [10004, 10003, 2, 10000, 10001, 0, 10005, 10002, 10006, 1, 10007],
    [10006, 10005, 10007, 2, 10004, 10003, 10000, 10001, 0, 10005, 10002],
]
