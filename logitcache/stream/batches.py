"""A batch, ready for training: token rows, the flat positions that have targets, and the targets themselves.

Shape legend: B rows, T tokens of the longest row, N positions with targets, K entries a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.errors import CorruptCacheError
from logitcache.format.arrays import ShardArrays
from logitcache.stream.rows import Sample
from logitcache.targets.topk import TopK


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass needs.

    Attributes:
        input_ids: ``[B, T]`` int64; rows are padded on the right, where causal attention never looks.
        position_ids: ``[B, T]`` int64; starts at 0 with each document, so that attention doesn't cross documents.
        target_index: ``[N]`` int64, positions in ``input_ids.view(-1)`` that have targets.
        targets: N rows. Those of a stream are kept as narrow as their values allow until they are read, on the device:
            ids take 16 bits in vocabularies up to 65,536, log-probs take 16 where no value changes by it.
        labels: ``[N]`` int64, the token that follows in the text; -100 leaves a position out of the loss.
        batch_targets: positions with targets in the whole global batch, all ranks and micro-batches together; 0 if that
            isn't known, or there are none.
        tokens: tokens of this micro-batch without the padding.
        epoch, step, part: where it stands: the epoch, the global batch within it, the micro-batch within that.
        samples_before, samples_consumed: samples of the epoch that are consumed before and after this global batch.
        ends_step: True at the last micro-batch of a global batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    target_index: Tensor
    targets: TopK
    labels: Tensor
    batch_targets: int = 0
    tokens: int = 0
    epoch: int = 0
    step: int = 0
    part: int = 0
    samples_before: int = 0
    samples_consumed: int = 0
    ends_step: bool = True

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy to a device; from pinned memory with ``non_blocking`` the copy overlaps with computing."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Page-locked copies, which a GPU can fetch by itself. DataLoader calls this under ``pin_memory=True``."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> Batch:
        changed = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor | TopK)}
        return replace(self, **changed)


@dataclass(frozen=True)
class _Piece:
    """One sequence's place in a batch: its tokens and targets in its shard, its row and first column in the batch."""

    shard: ShardArrays
    tokens: slice
    targets: slice
    row: int
    column: int

    @property
    def length(self) -> int:
        return int(self.tokens.stop - self.tokens.start)

    @property
    def columns(self) -> slice:
        return slice(self.column, self.column + self.length)


def collate(rows: Sequence[Sequence[Sample]], shards: Mapping[int, ShardArrays], template: ShardArrays) -> Batch:
    """Lay samples out as one batch.

    Args:
        rows: the samples of each row; without any, a batch of one token and no targets, so that a rank that has
            nothing to do in this step still takes part in it.
        shards: the prepared shards by number.
        template: any prepared shard of the cache, for K, vocabulary and which statistics there are.

    Raises:
        CorruptCacheError: a shard lacks statistics that the template has.
    """
    pieces, width = _place(rows, shards)
    height = max(1, len(rows))
    input_ids_BT = np.zeros((height, width), dtype=np.int64)
    for piece in pieces:
        input_ids_BT[piece.row, piece.columns] = piece.shard.token_ids_L[piece.tokens]
    index_parts = [
        piece.shard.target_positions_N[piece.targets] + (piece.row * width + piece.column - piece.tokens.start)
        for piece in pieces
    ]
    index_N = np.concatenate(index_parts or [np.zeros(0, dtype=np.int64)])
    return Batch(
        input_ids=torch.from_numpy(input_ids_BT),
        position_ids=torch.from_numpy(_positions(pieces, height, width)),
        target_index=torch.from_numpy(index_N),
        targets=_targets(pieces, template),
        # A sequence's last token has no targets, so the next token stands in the same row.
        labels=torch.from_numpy(input_ids_BT.reshape(-1).take(index_N + 1)),
        tokens=sum(piece.length for piece in pieces),
    )


def _targets(pieces: Sequence[_Piece], template: ShardArrays) -> TopK:
    """The pieces' targets end to end, in the narrow dtypes of their shards."""

    def joined(name: str) -> Tensor:
        columns = [getattr(piece.shard, name) for piece in pieces]
        if any(column is None for column in columns):
            raise CorruptCacheError("one shard of the cache holds statistics that another one lacks")
        parts = [column[piece.targets] for column, piece in zip(columns, pieces, strict=True)]
        return torch.from_numpy(np.concatenate(parts or [getattr(template, name)[:0]]))

    return TopK(
        ids=joined("topk_ids_NK"),
        logprobs=joined("topk_logprobs_NK"),
        residual_logprob=joined("residual_logprob_N"),
        vocab_size=template.vocab_size,
        log_partition=None if template.log_partition_N is None else joined("log_partition_N"),
        logit_std=None if template.logit_std_N is None else joined("logit_std_N"),
        **template.beyond.recorded(),
    )


def _place(rows: Sequence[Sequence[Sample]], shards: Mapping[int, ShardArrays]) -> tuple[list[_Piece], int]:
    pieces: list[_Piece] = []
    width = 1
    for number, samples in enumerate(rows):
        column = 0
        for shard_number, sequence in samples:
            shard = shards[shard_number]
            piece = _Piece(shard, shard.tokens_of(sequence), shard.targets_of(sequence), number, column)
            pieces.append(piece)
            column += piece.length
        width = max(width, column)
    return pieces, width


def _positions(pieces: Sequence[_Piece], height: int, width: int) -> NDArray[np.int64]:
    """Where rows hold one document each, positions count on through the padding: attention needs no mask then.

    Rows of several documents start again with each document, and every padding token is a document of its own:
    counting on could leave the range of a learned position embedding.
    """
    counted_BT = np.tile(np.arange(width, dtype=np.int64), (height, 1))
    if not any(piece.column for piece in pieces):
        return counted_BT
    position_ids_BT = np.zeros((height, width), dtype=np.int64)
    for piece in pieces:
        position_ids_BT[piece.row, piece.columns] = counted_BT[0, : piece.length]
    return position_ids_BT
