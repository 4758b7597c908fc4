"""Divide the rows of a global batch over ranks and micro-batches: in order, or by length.

A division changes neither the samples of a global batch nor the sum of its loss. It decides how much padding is
computed, and how long the slowest rank takes. It depends only on the number of rows and their lengths, so every rank
finds the same division without communication.

Shape legend: B rows of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from logitcache.stream.layout import Layout

#: By rank and micro-batch: the row numbers in it.
Division = list[list[list[int]]]


def divide(lengths_B: Sequence[int], layout: Layout) -> Division:
    """Divide a global batch as the layout says.

    Args:
        lengths_B: tokens of each row, in the order of samples.
        layout: ranks, micro-batches, their largest number of rows, and whether to group rows by length.

    Returns:
        For each of ``layout.world_size`` ranks, ``layout.parts`` lists of at most ``layout.micro_rows`` row numbers,
        each in ascending order. Every row is in exactly one of them.
    """
    plain = _in_order(len(lengths_B), layout)
    if not layout.group_by_length:
        return plain
    # If each rank has only one micro-batch, grouping gives all long rows to one rank: it computes as many tokens as the
    # slowest rank did before, and has more targets. The rows then stay in order.
    return min((_grouped(lengths_B, layout), plain), key=lambda division: max(works(lengths_B, division)))


def works(lengths_B: Sequence[int], division: Division) -> list[int]:
    """Each rank's work: the tokens that its body computes, with padding, and the tokens that its head reads."""
    return [sum(_work(lengths_B, part) for part in parts) for parts in division]


def _work(lengths_B: Sequence[int], rows: Sequence[int]) -> int:
    lengths = [lengths_B[row] for row in rows]
    return len(lengths) * max(lengths, default=0) + sum(lengths)


def _in_order(count: int, layout: Layout) -> Division:
    size = layout.micro_rows
    mine = [list(range(rank, count, layout.world_size)) for rank in range(layout.world_size)]
    return [[rows[part * size : (part + 1) * size] for part in range(layout.parts)] for rows in mine]


def _grouped(lengths_B: Sequence[int], layout: Layout) -> Division:
    """Group rows of similar length, with the least padding; micro-batches of similar work go to different ranks."""
    longest_first = np.argsort(-np.asarray(lengths_B, dtype=np.int64), kind="stable")
    sizes = _least_padding(
        np.asarray(lengths_B, dtype=np.int64)[longest_first], layout.world_size * layout.parts, layout.micro_rows
    )
    cuts = np.cumsum([0, *sizes]).tolist()
    groups = [sorted(longest_first[start:stop].tolist()) for start, stop in pairwise(cuts)]
    groups.sort(key=lambda rows: -_work(lengths_B, rows))
    division: Division = [[] for _ in range(layout.world_size)]
    done = [0] * layout.world_size
    for start in range(0, len(groups), layout.world_size):
        # The rank with the least work so far gets the most work. So two ranks never differ by more than the
        # micro-batches of one round do.
        ranks = sorted(range(layout.world_size), key=lambda rank: (done[rank], rank))
        for rank, rows in zip(ranks, groups[start : start + layout.world_size], strict=True):
            division[rank].append(rows)
            done[rank] += _work(lengths_B, rows)
    return division


def _least_padding(lengths_B: NDArray[np.int64], groups: int, most: int) -> list[int]:
    """Sizes of consecutive groups of at most ``most`` rows with the least padding; if several have it, the most even.

    ``lengths_B`` is in descending order. No other division into the same number of groups has less padding: for given
    sizes, groups of consecutive rows have the least width. It is found by dynamic programming over the empty slots.
    """
    count = len(lengths_B)
    spare = groups * most - count
    width = np.concatenate([lengths_B, np.zeros(spare + 1, dtype=np.int64)])
    scale = most * count + 1  # above any sum of squared sizes, which decides between equal paddings
    cost = np.zeros(spare + 1, dtype=np.int64)
    left_free = np.zeros((groups, spare + 1), dtype=np.int32)
    for group in range(groups):
        # Slots that the groups before leave free; this group begins after their rows.
        free = np.arange(min(spare, group * most) + 1)
        first = width[group * most - free] * scale
        best = np.full_like(cost, np.iinfo(np.int64).max)
        for empty in range(min(most, spare) + 1):
            size, reach = most - empty, min(len(free), spare + 1 - empty)
            price = cost[:reach] + size * first[:reach] + size * size
            better = np.flatnonzero(price < best[empty : empty + reach]) + empty
            best[better], left_free[group, better] = price[better - empty], empty
        cost = best
    sizes, free_slots = [], spare
    for group in range(groups - 1, -1, -1):
        empty = int(left_free[group, free_slots])
        sizes.append(most - empty)
        free_slots -= empty
    return sizes[::-1]
