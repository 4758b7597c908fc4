"""How the rows of an epoch become batches: of how many rows, on how many ranks, of which sequences and positions."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from logitcache.errors import ConfigError
from logitcache.stream.selection import EVERY_LENGTH, LengthFilter, Selection


@dataclass(frozen=True)
class Layout:
    """How an epoch's rows become batches.

    Attributes:
        batch_size: rows of a global batch, over all ranks and micro-batches.
        micro_batch_size: rows of one forward pass on one rank; None means all that the rank has.
        pack_tokens: pack sequences into rows of at most so many tokens; None: one sequence a row.
        rank, world_size: which part of each global batch is ours.
        vocab_limit: leave out positions whose targets name an id from there on (a student with a smaller head).
        selection: which positions to learn from.
        lengths: which sequences take part.
    """

    batch_size: int = 8
    micro_batch_size: int | None = None
    pack_tokens: int | None = None
    rank: int = 0
    world_size: int = 1
    vocab_limit: int | None = None
    selection: Selection | None = None
    lengths: LengthFilter = EVERY_LENGTH

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "pack_tokens", "world_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise ConfigError(f"{name} is {value}; it must be a whole number from 1")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank is {self.rank}; it must be from 0 to {self.world_size - 1}")

    @property
    def parts(self) -> int:
        """Micro-batches of a step, the same on every rank: what gradient accumulation counts."""
        return -(-self._rank_rows // self.micro_rows)

    @property
    def micro_rows(self) -> int:
        """Rows of one micro-batch; the last of a step may have fewer."""
        return self.micro_batch_size or self._rank_rows

    @property
    def _rank_rows(self) -> int:
        return -(-self.batch_size // self.world_size)
