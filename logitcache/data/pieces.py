"""Make sequences from rows. A row longer than the limit becomes several sequences, a truncated one, or none.

Shape legend: L tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LongRows = Literal["auto", "split", "truncate", "drop"]


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One sequence as the teacher reads it.

    Attributes:
        token_ids_L: uint32.
        target_mask_L: bool, True where the teacher's prediction is kept; never at the last token.
    """

    token_ids_L: NDArray[np.uint32]
    target_mask_L: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A tokenised row.

    Attributes:
        token_ids: its tokens.
        is_target_L: bool, True where token ``t`` is a target, so that position ``t - 1`` is kept.
        has_context: some of its tokens aren't targets, as in a chat. Such a row is split only on request.
    """

    token_ids: list[int]
    is_target_L: NDArray[np.bool_]
    has_context: bool = False


@dataclass(frozen=True)
class Pieces:
    """How rows become sequences.

    Attributes:
        max_length: longest sequence, in tokens.
        overlap: tokens that the next piece of a split row repeats as context.
        long_rows: ``split``, ``truncate`` or ``drop``. ``auto`` splits documents and truncates rows with context,
            because later pieces of a chat would not have the question that they answer.
    """

    max_length: int
    overlap: int = 0
    long_rows: LongRows = "auto"

    def choice(self, row: Tokenised) -> LongRows | None:
        """What to do with a row that is too long; None for other rows."""
        if len(row.token_ids) <= self.max_length:
            return None
        if self.long_rows == "auto":
            return "truncate" if row.has_context else "split"
        return self.long_rows

    def cut(self, row: Tokenised, before: tuple[int, ...]) -> Iterator[TokenSequence]:
        """Cut a row into sequences. Those without a target are left out.

        Args:
            row: the row.
            before: tokens that begin the row and must begin each of its pieces (BOS). Only the first piece keeps the
                predictions at these tokens.
        """
        choice = self.choice(row)
        if choice == "drop":
            return
        ids_L = np.asarray(row.token_ids, dtype=np.uint32)
        stop = min(len(ids_L), self.max_length)
        yield from _sequence(ids_L[:stop], row.is_target_L[:stop])
        if choice != "split":
            return
        begin_P = np.asarray(before, dtype=np.uint32)
        while stop < len(ids_L):
            start = stop - self.overlap
            stop = min(start + self.max_length - len(begin_P), len(ids_L))
            is_target_L = row.is_target_L[start:stop].copy()
            # Targets of the piece before are context here. Without an overlap, the first token has no context.
            is_target_L[: max(self.overlap, 1)] = False
            yield from _sequence(
                np.concatenate([begin_P, ids_L[start:stop]]),
                np.concatenate([np.zeros(len(begin_P), np.bool_), is_target_L]),
            )


def _sequence(ids_L: NDArray[np.uint32], is_target_L: NDArray[np.bool_]) -> Iterator[TokenSequence]:
    """One sequence, if it has a target."""
    target_mask_L = np.zeros(len(ids_L), dtype=np.bool_)
    target_mask_L[:-1] = is_target_L[1:]
    if target_mask_L.any():
        yield TokenSequence(ids_L, target_mask_L)
