"""A part of a cache, and the shards that hold it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import ConfigError
from logitcache.format.table import ShardTable

#: The most shards that a shard table can list.
_MOST_SHARDS = 10_000_000


@dataclass(frozen=True)
class Selection:
    """A part of a cache. At most one field is set; without any it is the whole cache.

    Attributes:
        shards: numbers of whole shards, in their order in the cache.
        sequences: first and last index; the last isn't included.
        tokens: the first sequences that together have at most this many tokens.
    """

    shards: tuple[int, ...] | None = None
    sequences: tuple[int, int] | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.shards, self.sequences, self.tokens)) > 1:
            raise ConfigError("give only one of shards, sequences and tokens")

    def __str__(self) -> str:
        if self.shards is not None:
            return f"shards {_spans(self.shards)}"
        if self.sequences is not None:
            return f"sequences {self.sequences[0]}:{self.sequences[1]}"
        return "all" if self.tokens is None else f"tokens {self.tokens}"


@dataclass(frozen=True)
class Piece:
    """The selected part of one shard: its sequences from ``start`` up to ``stop``, and at most ``tokens`` tokens."""

    shard: int
    start: int
    stop: int
    tokens: int | None = None

    def mask(self, lengths_S: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``[S]`` bool: which sequences of the shard are selected; ``lengths_S`` is the number of tokens of each."""
        keep_S = np.zeros(len(lengths_S), np.bool_)
        keep_S[self.start : self.stop] = True
        if self.tokens is not None:
            keep_S &= np.cumsum(lengths_S) <= self.tokens
        return keep_S


def find_pieces(selection: Selection, table: ShardTable) -> list[Piece]:
    """The shards that hold a selection, and the selected part of each.

    Raises:
        ConfigError: there are no such shards or sequences, or nothing is selected.
    """
    counts_R = table.counts_R["sequences"]
    if selection.shards is not None:
        _check_shards(selection.shards, len(table))
        return [Piece(shard, 0, int(counts_R[shard])) for shard in sorted(set(selection.shards))]
    first_R1 = table.first_sequence_R1
    start, stop = selection.sequences or (0, int(first_R1[-1]))
    if not 0 <= start < stop <= first_R1[-1]:
        raise ConfigError(f"sequences {start}:{stop} aren't a range within 0:{int(first_R1[-1])}")
    pieces = []
    left = selection.tokens
    for shard in range(len(table)):
        low, high = max(start, int(first_R1[shard])), min(stop, int(first_R1[shard + 1]))
        if low >= high or (left is not None and left <= 0):
            continue
        tokens = int(table.counts_R["tokens"][shard])
        base = int(first_R1[shard])
        pieces.append(Piece(shard, low - base, high - base, left if left is not None and left < tokens else None))
        left = None if left is None else left - tokens
    if not pieces:
        raise ConfigError(f"{selection} selects nothing: the cache has {int(first_R1[-1]):,} sequences")
    return pieces


def parse_spans(text: str, what: str) -> tuple[int, ...]:
    """Numbers from ``0:4,7``: 0, 1, 2, 3, 7.

    Raises:
        ConfigError: it isn't a list of numbers and ranges.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        if not first.isdecimal() or (colon and not last.isdecimal()):
            raise ConfigError(f"{what} is {text!r}; give numbers and ranges such as 0:4,7 (4 itself isn't part of 0:4)")
        span = range(int(first), int(last) if colon else int(first) + 1)
        if len(span) + len(numbers) > _MOST_SHARDS:
            raise ConfigError(f"{what} is {text!r}: no cache has more than {_MOST_SHARDS:,} shards")
        numbers.extend(span)
    if not numbers:
        raise ConfigError(f"{what} {text!r} names nothing")
    return tuple(numbers)


def parse_range(text: str, what: str) -> tuple[int, int]:
    """Two numbers from ``0:1000``; ``1000`` alone means ``0:1000``.

    Raises:
        ConfigError: it isn't a range.
    """
    first, colon, last = text.strip().partition(":")
    if not first.isdecimal() or (colon and not last.isdecimal()):
        raise ConfigError(f"{what} is {text!r}; give a range such as 0:1000, or a number")
    return (int(first), int(last)) if colon else (0, int(first))


def _check_shards(shards: tuple[int, ...], count: int) -> None:
    outside = [shard for shard in shards if not 0 <= shard < count]
    if outside or not shards:
        raise ConfigError(f"there is no shard {outside[0] if outside else ''}: the cache has 0 to {count - 1}")


def _spans(numbers: tuple[int, ...]) -> str:
    ordered = sorted(set(numbers))
    spans: list[list[int]] = []
    for number in ordered:
        if spans and number == spans[-1][1]:
            spans[-1][1] += 1
        else:
            spans.append([number, number + 1])
    return ",".join(str(low) if high == low + 1 else f"{low}:{high}" for low, high in spans)
