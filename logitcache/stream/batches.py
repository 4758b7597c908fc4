"""A batch, ready for training: token rows, the flat positions that have targets, and the targets themselves.

Shape legend: B rows, T tokens of the longest row, N positions with targets, K entries a position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.errors import CorruptCacheError
from logitcache.format.arrays import ShardArrays
from logitcache.stream.rows import Sample
from logitcache.stream.selection import Selection
from logitcache.targets.beyond import ALL_RANKED, Beyond
from logitcache.targets.topk import TopK


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass needs. The targets are as narrow as their values allow until :attr:`targets` is asked for,
    on the device: ids take 16 bits below 65,537 words, log-probs take 16 where no value changes by it.

    Attributes:
        input_ids: ``[B, T]`` int64; rows are filled up on the right, where causal attention never looks.
        position_ids: ``[B, T]`` int64; starts at 0 with each document, so that attention doesn't cross documents.
        target_index: ``[N]`` int64, positions in ``input_ids.view(-1)`` that have targets.
        topk_ids: ``[N, K]`` uint16, int32 or int64.
        topk_logprobs: ``[N, K]`` float16 or float32, nats.
        residual_logprob: ``[N]`` float32, nats.
        labels: ``[N]`` int64, the token that follows in the text.
        vocab_size: V of the teacher.
        log_partition, logit_std: ``[N]`` float32, or None where the cache doesn't hold them.
        tail_samples, candidates: how many of the K entries, the last ones, are a sample of the tail, or a reference's.
        batch_targets: positions with targets in the whole global batch, all ranks and micro-batches together.
        tokens: tokens of this micro-batch without the filling.
        epoch, step, part: where it stands: the epoch, the global batch within it, the micro-batch within that.
        samples_before, samples_consumed: samples of the epoch that are consumed before and after this global batch.
        ends_step: True at the last micro-batch of a global batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    target_index: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor
    residual_logprob: Tensor
    labels: Tensor
    vocab_size: int
    log_partition: Tensor | None = None
    logit_std: Tensor | None = None
    beyond: Beyond = ALL_RANKED
    batch_targets: int = 0
    tokens: int = 0
    epoch: int = 0
    step: int = 0
    part: int = 0
    samples_before: int = 0
    samples_consumed: int = 0
    ends_step: bool = True

    @property
    def targets(self) -> TopK:
        """The teacher's side, as every loss takes it: int64 ids, float32 values."""
        return TopK(
            ids=self.topk_ids.long(),
            logprobs=self.topk_logprobs,
            residual_logprob=self.residual_logprob,
            vocab_size=self.vocab_size,
            log_partition=self.log_partition,
            logit_std=self.logit_std,
            **self.beyond.recorded(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without those that are None."""
        return {field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy to a device; from pinned memory with ``non_blocking`` the copy overlaps with computing."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Page-locked copies, which a GPU can fetch by itself. DataLoader calls this under ``pin_memory=True``."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)


class DecodedShard:
    """A shard in memory, compact, with the places of its sequences' targets worked out once."""

    def __init__(self, arrays: ShardArrays, vocab_limit: int | None = None, selection: Selection | None = None) -> None:
        """``vocab_limit``: positions that need an id from there on are left out, see :func:`known_positions`."""
        if vocab_limit is not None and vocab_limit < arrays.vocab_size:
            arrays = keep_targets(arrays, known_positions(arrays, vocab_limit))
            # A model without such a row can't read the token; nothing is learnt behind it.
            arrays = replace(arrays, token_ids_L=np.where(arrays.token_ids_L < vocab_limit, arrays.token_ids_L, 0))
        if selection is not None and not selection.keeps_all:
            arrays = keep_targets(arrays, selection.keep(arrays))
        self.vocab_size = arrays.vocab_size
        self.beyond = arrays.beyond
        self.offsets = arrays.offsets_S1
        self.token_ids_L = arrays.token_ids_L
        counts_L1 = np.concatenate([[0], np.cumsum(arrays.target_mask_L, dtype=np.int64)])
        self.target_offsets = counts_L1[self.offsets]
        # Positions within the shard that have targets, in the order of the target rows.
        self.positions_N = np.flatnonzero(arrays.target_mask_L)
        self.labels_N = arrays.token_ids_L[self.positions_N + 1].astype(np.int64)
        self.topk_ids_NK = narrow_ids(arrays.topk_ids_NK, arrays.vocab_size)
        self.topk_logprobs_NK = narrow_logprobs(arrays.topk_logprobs_NK)
        self.residual_logprob_N = arrays.residual_logprob_N
        self.log_partition_N, self.logit_std_N = arrays.log_partition_N, arrays.logit_std_N

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    def targets_of(self, sequence: int) -> int:
        return int(self.target_offsets[sequence + 1] - self.target_offsets[sequence])


def narrow_ids(ids_NK: NDArray[np.uint32], vocab_size: int) -> NDArray[Any]:
    """Ids in the narrowest type that torch knows and that holds the vocabulary: uint16, int32 or int64."""
    if vocab_size <= 1 << 16:
        return ids_NK.astype(np.uint16)
    return ids_NK.view(np.int32) if vocab_size <= 1 << 31 else ids_NK.astype(np.int64)


def narrow_logprobs(logprobs_NK: NDArray[np.float32]) -> NDArray[Any]:
    """Log-probs as float16 if that changes none of them, as it doesn't for the presets half, compact and tiny.

    (Only values below -64 nats may not fit; a shard that holds one keeps float32.)
    """
    narrow_NK = np.empty(logprobs_NK.shape, np.float16)
    rows = max(1, (1 << 18) // max(1, logprobs_NK.shape[1]))  # so many stay in the processor's cache
    for start in range(0, len(narrow_NK), rows):
        wide = torch.from_numpy(logprobs_NK[start : start + rows])
        # torch converts ten times as fast as numpy.
        half = torch.from_numpy(narrow_NK[start : start + rows]).copy_(wide)
        if not torch.equal(half.float(), wide):
            return logprobs_NK
    return narrow_NK


def known_positions(arrays: ShardArrays, vocab_limit: int) -> NDArray[np.bool_]:
    """``[N]``, False where the targets, the next token or one up to there are ids from ``vocab_limit`` on."""
    unknown_L1 = np.concatenate([[0], np.cumsum(arrays.token_ids_L >= vocab_limit)])
    starts_L = np.repeat(arrays.offsets_S1[:-1], np.diff(arrays.offsets_S1))
    read_L = unknown_L1[np.minimum(np.arange(len(starts_L)) + 2, len(starts_L))] - unknown_L1[starts_L]
    known_N: NDArray[np.bool_] = (read_L[arrays.target_mask_L] == 0) & np.all(arrays.topk_ids_NK < vocab_limit, axis=1)
    return known_N


def keep_targets(arrays: ShardArrays, keep_N: NDArray[np.bool_]) -> ShardArrays:
    """The same shard with some positions' targets only; tokens and sequences stay."""
    if keep_N.all():
        return arrays
    mask_L = arrays.target_mask_L.copy()
    mask_L[mask_L] = keep_N
    partition_N, std_N = arrays.log_partition_N, arrays.logit_std_N
    return replace(
        arrays,
        target_mask_L=mask_L,
        topk_ids_NK=arrays.topk_ids_NK[keep_N],
        topk_logprobs_NK=arrays.topk_logprobs_NK[keep_N],
        residual_logprob_N=arrays.residual_logprob_N[keep_N],
        log_partition_N=None if partition_N is None else partition_N[keep_N],
        logit_std_N=None if std_N is None else std_N[keep_N],
    )


@dataclass(frozen=True)
class _Piece:
    """One sequence's place in a batch: token slice and target slice of its shard, row and column in the batch."""

    shard: DecodedShard
    tokens: slice
    targets: slice
    row: int
    column: int


def collate(rows: Sequence[Sequence[Sample]], shards: dict[int, DecodedShard], template: DecodedShard) -> Batch:
    """Lay samples out as one batch.

    Args:
        rows: the samples of each row; without any, a batch of one token and no targets, so that a rank that has
            nothing to do in this step still takes part in it.
        shards: the decoded shards by number.
        template: any shard of the cache, for K, vocabulary and which statistics there are.
    """
    pieces, width = _place(rows, shards)
    height = max(1, len(rows))
    input_ids_BT = np.zeros((height, width), dtype=np.int64)
    position_ids_BT = _positions(pieces, height, width)
    for piece in pieces:
        length = piece.tokens.stop - piece.tokens.start
        input_ids_BT[piece.row, piece.column : piece.column + length] = piece.shard.token_ids_L[piece.tokens]
    index_parts = [
        piece.shard.positions_N[piece.targets] + (piece.row * width + piece.column - piece.tokens.start)
        for piece in pieces
    ]

    def gather(select: Callable[[DecodedShard], NDArray[np.generic]]) -> Tensor:
        parts = [select(piece.shard)[piece.targets] for piece in pieces] or [select(template)[:0]]
        return torch.from_numpy(np.concatenate(parts))

    has_partition = template.log_partition_N is not None
    has_std = template.logit_std_N is not None
    return Batch(
        input_ids=torch.from_numpy(input_ids_BT),
        position_ids=torch.from_numpy(position_ids_BT),
        target_index=torch.from_numpy(np.concatenate(index_parts or [np.zeros(0, dtype=np.int64)])),
        topk_ids=gather(lambda shard: shard.topk_ids_NK),
        topk_logprobs=gather(lambda shard: shard.topk_logprobs_NK),
        residual_logprob=gather(lambda shard: shard.residual_logprob_N),
        labels=gather(lambda shard: shard.labels_N),
        vocab_size=template.vocab_size,
        log_partition=gather(lambda shard: _present(shard.log_partition_N)) if has_partition else None,
        logit_std=gather(lambda shard: _present(shard.logit_std_N)) if has_std else None,
        beyond=template.beyond,
        tokens=sum(piece.tokens.stop - piece.tokens.start for piece in pieces),
    )


def _present(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if values is None:
        raise CorruptCacheError("one shard of the cache holds statistics that another one lacks")
    return values


def _place(rows: Sequence[Sequence[Sample]], shards: dict[int, DecodedShard]) -> tuple[list[_Piece], int]:
    pieces: list[_Piece] = []
    width = 1
    for number, samples in enumerate(rows):
        column = 0
        for shard_number, sequence in samples:
            shard = shards[shard_number]
            tokens = slice(int(shard.offsets[sequence]), int(shard.offsets[sequence + 1]))
            targets = slice(int(shard.target_offsets[sequence]), int(shard.target_offsets[sequence + 1]))
            pieces.append(_Piece(shard, tokens, targets, number, column))
            column += tokens.stop - tokens.start
        width = max(width, column)
    return pieces, width


def _positions(pieces: Sequence[_Piece], height: int, width: int) -> NDArray[np.int64]:
    """Where rows hold one document each, positions count on through the filling: attention needs no mask then.

    Rows of several documents start again with each document, and every filling token is a document of its own:
    counting on could leave the range of a learned position embedding.
    """
    counted_BT = np.tile(np.arange(width, dtype=np.int64), (height, 1))
    if not any(piece.column for piece in pieces):
        return counted_BT
    position_ids_BT = np.zeros((height, width), dtype=np.int64)
    for piece in pieces:
        length = piece.tokens.stop - piece.tokens.start
        position_ids_BT[piece.row, piece.column : piece.column + length] = counted_BT[0, :length]
    return position_ids_BT
