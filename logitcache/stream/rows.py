"""Rows of a batch: each holds one sequence, or several packed ones. They are made before ranks divide them.

Packing is best fit, longest first, within one window; then the rows are shuffled. The result depends only on the order
and the lengths, so the number of samples before a row is enough to find it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import ConfigError, ResumeMismatchError
from logitcache.stream.order import EpochOrder

#: One sequence: (shard, sequence within the shard).
Sample = tuple[int, int]
#: Lengths in tokens of each sequence of a shard.
Lengths = Callable[[int], NDArray[np.int32]]


@dataclass(frozen=True)
class Row:
    """The samples of one row of ``input_ids``, their window, and the number of samples of the epoch up to this row."""

    samples: tuple[Sample, ...]
    window: int
    consumed: int


class RowPlan:
    """The rows of one epoch in order.

    Args:
        order: the epoch's order of samples.
        pack_tokens: the most tokens of a row; None puts one sequence in each row.
        lengths: needed for packing only.
    """

    def __init__(self, order: EpochOrder, pack_tokens: int | None = None, lengths: Lengths | None = None) -> None:
        if pack_tokens is not None and lengths is None:
            raise ConfigError("packing needs the lengths of the sequences")
        self.order, self._budget, self._lengths = order, pack_tokens, lengths
        if pack_tokens is None:
            self._rows_W = np.diff(order.first_sample_W1)
        else:
            self._rows_W = np.array([len(self._packed(window)) for window in range(order.windows)], dtype=np.int64)

    @property
    def rows(self) -> int:
        return int(self._rows_W.sum())

    def batches(self, batch_size: int) -> int:
        """Global batches of an epoch; the last one may be smaller."""
        return -(-self.rows // batch_size)

    def rows_before(self, samples: int) -> int:
        """The number of rows that hold the first ``samples`` samples.

        Raises:
            ResumeMismatchError: these samples don't end at a row, so they were counted with other settings.
        """
        if samples == self.order.samples:
            return self.rows
        window = self.order.window_of(samples)
        before = int(self._rows_W[:window].sum())
        inside = samples - int(self.order.first_sample_W1[window])
        if self._budget is None:
            return before + inside
        counts = np.array([0, *(len(row) for row in self._packed(window))]).cumsum()
        row = int(np.searchsorted(counts, inside))
        if counts[row] != inside:
            raise ResumeMismatchError(
                f"{samples} samples consumed doesn't end at a packed row: the state was saved with other packing"
            )
        return before + row

    def iterate(self, first_row: int = 0) -> Iterator[Row]:
        """Rows from ``first_row`` on, to the end of the epoch."""
        ends_W = np.cumsum(self._rows_W)
        window = int(np.searchsorted(ends_W, first_row, side="right"))
        for index in range(window, self.order.windows):
            consumed = int(self.order.first_sample_W1[index])
            skip = first_row - int(ends_W[index] - self._rows_W[index])
            for position, samples in enumerate(self._window_rows(index)):
                consumed += len(samples)
                if position >= skip:
                    yield Row(samples, index, consumed)

    def _window_rows(self, window: int) -> Iterator[tuple[Sample, ...]]:
        pairs = self.order.window_samples(window).tolist()
        if self._budget is None:
            yield from (((shard, local),) for shard, local in pairs)
            return
        for members in self._packed(window):
            yield tuple((pairs[member][0], pairs[member][1]) for member in members)

    def _packed(self, window: int) -> list[list[int]]:
        assert self._budget is not None
        assert self._lengths is not None
        pairs = self.order.window_samples(window)
        by_shard = {int(shard): self._lengths(int(shard)) for shard in self.order.window_shards(window)}
        lengths = np.array([by_shard[shard][local] for shard, local in pairs.tolist()], dtype=np.int64)
        rows = best_fit(lengths, self._budget)
        return [rows[row] for row in self.order.permutation(f"rows {window}", len(rows))]


def best_fit(lengths: NDArray[np.int64], budget: int) -> list[list[int]]:
    """Pack items into rows of at most ``budget``: longest first, each into the fullest row with enough space.

    Raises:
        ConfigError: an item is longer than the budget.
    """
    if len(lengths) and int(lengths.max()) > budget:
        raise ConfigError(
            f"pack_tokens is {budget}, but the cache holds a sequence of {int(lengths.max())} tokens; "
            f"give at least {int(lengths.max())}, or leave such sequences out with max_length"
        )
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (tokens free, row), sorted
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        slot = bisect_left(space, (length, -1))
        if slot == len(space):
            rows.append([item])
            insort(space, (budget - length, len(rows) - 1))
        else:
            free, row = space.pop(slot)
            rows[row].append(item)
            insort(space, (free - length, row))
    return rows
