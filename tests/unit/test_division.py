"""Rows divided over ranks and micro-batches by length: every row once, little padding, near-equal ranks, same step."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cache import MemoryCache
from stream_steps import sequence_ids
from transformers import LlamaConfig, LlamaForCausalLM

import logitcache as lc
from logitcache.losses import StudentWithLoss
from logitcache.losses.registry import resolve
from logitcache.stream.division import Division, divide, works
from logitcache.stream.layout import Layout

layouts = st.builds(
    Layout,
    batch_size=st.integers(1, 40),
    micro_batch_size=st.one_of(st.none(), st.integers(1, 9)),
    world_size=st.integers(1, 6),
    group_by_length=st.just(True),
)


def undivided(lengths: list[int], layout: Layout) -> Division:
    """What the stream does without grouping, written down a second time."""
    size = layout.micro_rows
    mine = [list(range(rank, len(lengths), layout.world_size)) for rank in range(layout.world_size)]
    return [[rows[part * size : (part + 1) * size] for part in range(layout.parts)] for rows in mine]


def padding(lengths: list[int], division: Division) -> int:
    """Tokens of padding that all ranks compute."""
    parts = [rows for parts in division for rows in parts if rows]
    return sum(len(rows) * max(lengths[row] for row in rows) for rows in parts) - sum(lengths)


@settings(max_examples=300, deadline=None)
@given(layout=layouts, data=st.data())
def test_every_row_once_with_no_more_padding_and_no_slower_rank(layout: Layout, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=layout.batch_size), label="lengths")
    division, plain = divide(lengths, layout), undivided(lengths, layout)
    assert [len(parts) for parts in division] == [layout.parts] * layout.world_size
    assert sorted(row for parts in division for rows in parts for row in rows) == list(range(len(lengths)))
    for rows in (rows for parts in division for rows in parts):
        assert len(rows) <= layout.micro_rows
        assert rows == sorted(rows)
    assert padding(lengths, division) <= padding(lengths, plain)
    assert max(works(lengths, division)) <= max(works(lengths, plain))
    assert divide(lengths, layout) == division


@settings(max_examples=300, deadline=None)
@given(layout=layouts, data=st.data())
def test_ranks_differ_by_no_more_than_the_micro_batches_of_one_round(layout: Layout, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=layout.batch_size), label="lengths")
    division = divide(lengths, layout)
    if division == undivided(lengths, layout):
        return
    rounds = [works(lengths, [[rows] for rows in together]) for together in zip(*division, strict=True)]
    widest = max(max(each) - min(each) for each in rounds)
    assert max(works(lengths, division)) - min(works(lengths, division)) <= widest
    # The largest come first, so that a step that doesn't fit into memory fails at once.
    assert rounds == sorted(rounds, key=max, reverse=True)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    micro=st.integers(1, 4),
    extra=st.integers(0, 2),
)
def test_no_other_division_has_less_padding(lengths: list[int], micro: int, extra: int) -> None:
    layout = Layout(len(lengths) + extra, micro, group_by_length=True)

    @lru_cache
    def least(rows: tuple[int, ...], groups: int) -> float:
        """Padded tokens, over all ways to put the longest row together with up to ``micro - 1`` others."""
        if not rows:
            return 0
        if not groups:
            return float("inf")
        longest, others = rows[0], rows[1:]
        found = []
        for chosen in range(1 << len(others)):
            with_it = [other for place, other in enumerate(others) if chosen >> place & 1]
            if len(with_it) < micro:
                left = tuple(other for place, other in enumerate(others) if not chosen >> place & 1)
                found.append((1 + len(with_it)) * longest + least(left, groups - 1))
        return min(found)

    expected = least(tuple(sorted(lengths, reverse=True)), layout.parts) - sum(lengths)
    assert padding(lengths, divide(lengths, layout)) == expected


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_have_near_equal_tokens_and_little_padding(ranks: int) -> None:
    chance = np.random.default_rng(0)
    layout = Layout(batch_size=64 * ranks, micro_batch_size=8, world_size=ranks, group_by_length=True)
    for _ in range(10):
        lengths = chance.integers(16, 513, size=layout.batch_size).tolist()
        division = divide(lengths, layout)
        tokens = [sum(lengths[row] for rows in parts for row in rows) for parts in division]
        assert max(tokens) / min(tokens) < 1.05
        assert padding(lengths, division) < 0.15 * sum(lengths)
        assert padding(lengths, undivided(lengths, layout)) > 0.5 * sum(lengths)


def test_of_equal_paddings_the_most_even_is_taken() -> None:
    (parts,) = divide([10] * 57, Layout(batch_size=57, micro_batch_size=8, group_by_length=True))
    assert sorted(map(len, parts)) == [7] * 7 + [8]


def test_a_rank_may_have_nothing() -> None:
    layout = Layout(batch_size=8, micro_batch_size=1, world_size=4, group_by_length=True)
    assert divide([5], layout) == [[[0], []], [[], []], [[], []], [[], []]]


@pytest.mark.parametrize(("ranks", "micro", "pack_tokens"), [(1, 2, None), (2, 1, None), (2, 2, 16)])
def test_the_loss_and_gradient_of_a_step_are_the_same(ranks: int, micro: int, pack_tokens: int | None) -> None:
    """In float64, so that only rounding is left of any difference."""
    cache = MemoryCache.random(shards=6, largest=8, longest=15, seed=11, k=8, vocab_size=500, first_word=200)
    torch.manual_seed(0)
    shape = {"vocab_size": 500, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=64)).double()

    def steps(grouped: bool) -> list[tuple[list[list[int]], float, torch.Tensor]]:
        """For each step: its micro-batches, its loss and its gradient, averaged over ranks as DDP does."""
        module = StudentWithLoss(model, resolve("bild=1.0,residual_kl=1.0"), 500, ranks)
        streams = [
            lc.stream(
                cache, batch_size=7, micro_batch_size=micro, pack_tokens=pack_tokens, rank=rank, world_size=ranks,
                group_by_length=grouped, prefetch=0,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        found, parts, total = [], [], 0.0
        for batches in zip(*streams, strict=True):
            if batches[0].step == 2:
                break
            for batch in batches:
                loss, _ = module(batch)
                (loss / ranks).backward()
                parts.append(sequence_ids(batch))
                total += float(loss.detach()) / ranks
            if batches[0].ends_step:
                gradient = torch.cat([value.grad.flatten() for value in model.parameters()])
                found.append((parts, total, gradient))
                parts, total = [], 0.0
                model.zero_grad()
        return found

    plain, grouped = steps(False), steps(True)
    assert len(plain) == len(grouped) == 2
    assert [parts for parts, _, _ in plain] != [parts for parts, _, _ in grouped]
    for (before, loss, gradient), (after, grouped_loss, grouped_gradient) in zip(plain, grouped, strict=True):
        assert sorted(chain.from_iterable(before)) == sorted(chain.from_iterable(after))
        assert grouped_loss == pytest.approx(loss, rel=1e-6)
        assert (grouped_gradient - gradient).abs().max() <= 1e-6 * gradient.abs().max()
