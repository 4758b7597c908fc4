"""How the rows of an epoch are divided into batches: their size, the ranks, and which sequences and positions."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from logitcache.errors import ConfigError
from logitcache.stream.selection import EVERY_LENGTH, LengthFilter, Selection


@dataclass(frozen=True)
class Layout:
    """How an epoch's rows are divided into batches.

    Attributes:
        batch_size: rows of a global batch, over all ranks and micro-batches.
        micro_batch_size: rows of one forward pass on one rank; None means all rows of the rank.
        pack_tokens: pack sequences into rows of at most this many tokens; None means one sequence in each row.
        rank, world_size: which part of each global batch this rank gets.
        vocab_limit: leave out positions whose targets list this id or a larger one (for a student with fewer ids).
        selection: which positions to use.
        lengths: which sequences to use.
        group_by_length: divide each global batch over ranks and micro-batches by the lengths of its rows.
    """

    batch_size: int = 8
    micro_batch_size: int | None = None
    pack_tokens: int | None = None
    rank: int = 0
    world_size: int = 1
    vocab_limit: int | None = None
    selection: Selection | None = None
    lengths: LengthFilter = EVERY_LENGTH
    group_by_length: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "pack_tokens", "world_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise ConfigError(f"{name} is {value}; it must be a whole number from 1")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank is {self.rank}; it must be from 0 to {self.world_size - 1}")

    @property
    def parts(self) -> int:
        """Micro-batches of a step, the same number on every rank: the steps of gradient accumulation."""
        return -(-self._rank_rows // self.micro_rows)

    @property
    def micro_rows(self) -> int:
        """Rows of one micro-batch; the last of a step may have fewer."""
        return self.micro_batch_size or self._rank_rows

    @property
    def _rank_rows(self) -> int:
        return -(-self.batch_size // self.world_size)
