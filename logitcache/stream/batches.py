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
from logitcache.stream.known_labels import KnownLabels, is_at_hand
from logitcache.stream.rows import Sample
from logitcache.targets.topk import TopK


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of one forward pass.

    Attributes:
        input_ids: ``[B, T]`` int64; rows are padded on the right, so causal attention never sees the padding.
        position_ids: ``[B, T]`` int64; they start at 0 in each document, so that attention doesn't cross documents.
        target_index: ``[N]`` int64, positions in ``input_ids.view(-1)`` that have targets.
        targets: N rows. A stream gives them in narrow dtypes, which are widened when they are read, on the device: ids
            have 16 bits if the vocabulary has at most 65,536, and log-probs have 16 bits if that changes no value.
        labels: ``[N]`` int64, the next token of the text; a position with -100 is left out of the loss.
        batch_targets: positions with targets in the global batch, over all ranks and micro-batches; 0 if that isn't
            known, or there are none.
        tokens: tokens of this micro-batch without the padding.
        epoch, step, part: the epoch, the global batch in it, and the micro-batch in that, each counted from 0.
        samples_before, samples_consumed: samples of the epoch before this global batch, and up to its end.
        ends_step: True at the last micro-batch of a global batch.
        document_starts: ``[D + 1]`` int32: where each of the D documents begins in ``input_ids.view(-1)``, and how long
            that is; the padding of a packed row is one document. None if that isn't known.
        longest_document: tokens of the longest of these documents.
        known_labels: what is known of ``labels`` on a GPU, so that a training step need not look at them there.
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
    document_starts: Tensor | None = None
    longest_document: int = 0
    known_labels: KnownLabels | None = None

    @property
    def label_range(self) -> tuple[int, int] | None:
        """The least and the greatest label; None if that isn't known without looking at them."""
        known = self._known_labels()
        return None if known is None else (known.least, known.greatest)

    def _known_labels(self) -> KnownLabels | None:
        known = self.known_labels
        if known is not None and known.hold_for(self.labels):
            return known
        return KnownLabels.of(self.labels) if is_at_hand(self.labels) else None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy to a device; from pinned memory with ``non_blocking`` the copy overlaps with computing."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, for copies to a GPU. DataLoader calls this with ``pin_memory=True``."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> Batch:
        changed = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor | TopK)}
        known = self._known_labels()
        return replace(self, **changed | {"known_labels": None if known is None else known.copied(changed["labels"])})


@dataclass(frozen=True)
class _Piece:
    """One sequence of a batch: its tokens and targets in its shard, its row and first column in the batch."""

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
    """Make one batch from samples.

    Args:
        rows: the samples of each row. Without any rows it makes a batch of one token and no targets, because every rank
            needs a batch in every step.
        shards: the prepared shards by number.
        template: any prepared shard of the cache, for its K, vocabulary and statistics.

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
    # A sequence's last token has no targets, so the next token is always in the same row.
    labels_N = torch.from_numpy(input_ids_BT.reshape(-1).take(index_N + 1))
    starts_D1 = _document_starts(pieces, height, width)
    return Batch(
        input_ids=torch.from_numpy(input_ids_BT),
        position_ids=torch.from_numpy(_positions(pieces, height, width)),
        target_index=torch.from_numpy(index_N),
        targets=_targets(pieces, template),
        labels=labels_N,
        tokens=sum(piece.length for piece in pieces),
        document_starts=torch.from_numpy(starts_D1),
        longest_document=int(np.diff(starts_D1).max()),
    )


def _targets(pieces: Sequence[_Piece], template: ShardArrays) -> TopK:
    """The pieces' targets one after the other, in the narrow dtypes of their shards."""

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
    """Position ids ``[B, T]``.

    If each row holds one document, they go on through the padding, so that attention needs no mask. If a row holds
    several, they start again with each document, and are 0 in the padding: larger ones could be outside the range of a
    learned position embedding.
    """
    counted_BT = np.tile(np.arange(width, dtype=np.int64), (height, 1))
    if not any(piece.column for piece in pieces):
        return counted_BT
    position_ids_BT = np.zeros((height, width), dtype=np.int64)
    for piece in pieces:
        position_ids_BT[piece.row, piece.columns] = counted_BT[0, : piece.length]
    return position_ids_BT


def _document_starts(pieces: Sequence[_Piece], height: int, width: int) -> NDArray[np.int32]:
    """Where documents begin if the rows are laid end to end, and where the last one ends.

    In rows of one document each, the padding belongs to it, as its positions say.
    """
    starts = {row * width for row in range(height + 1)}
    if any(piece.column for piece in pieces):  # where a document ends, the next one or the padding begins
        starts |= {piece.row * width + piece.columns.stop for piece in pieces}
    return np.array(sorted(starts), dtype=np.int32)
