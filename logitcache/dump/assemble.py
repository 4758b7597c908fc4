"""A shard's batches, computed longest first, back into the order of its sequences.

Shape legend: S sequences of a shard, L tokens, N positions that have targets, K entries a position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.data import TokenSequence
from logitcache.engines.transformers_engine import HostTopK
from logitcache.errors import NonFiniteLogitsError
from logitcache.format.arrays import ShardArrays, sequence_digest
from logitcache.targets.topk import TopK


@dataclass(frozen=True, eq=False)
class Computed:
    """What the teacher said about a shard: each batch is its sequences' indices, and their targets in that order."""

    sequences: list[TokenSequence]
    batches: list[tuple[list[int], HostTopK]]

    @property
    def vocab_size(self) -> int:
        """V, the length of the teacher's logit vectors."""
        return self.batches[0][1].targets.vocab_size


def assemble(
    computed: Computed, where: Callable[[int], str], *, skip_non_finite: bool
) -> tuple[ShardArrays | None, int]:
    """The shard's arrays, and the number of positions left out because their logits weren't finite.

    Args:
        computed: the batches.
        where: names a sequence of the shard, for the error.
        skip_non_finite: leave such positions out, and sequences that have no others; None if nothing stays.

    Raises:
        NonFiniteLogitsError: names the sequence and the position.
    """
    parts = _by_sequence(computed)
    sequences: list[TokenSequence] = []
    kept: list[TopK] = []
    skipped = 0
    for s, (sequence, targets) in enumerate(zip(computed.sequences, parts, strict=True)):
        bad_M = ~np.isfinite(targets.logprobs[:, 0].numpy())
        if bad_M.any():
            positions_M = np.flatnonzero(sequence.target_mask_L)
            if not skip_non_finite:
                raise NonFiniteLogitsError(
                    f"the teacher's logits are not finite for {where(s)} at position {positions_M[bad_M][0]}: "
                    "try --dtype fp32, or leave such positions out with --skip-non-finite"
                )
            skipped += int(bad_M.sum())
            mask_L = sequence.target_mask_L.copy()
            mask_L[positions_M[bad_M]] = False
            sequence, targets = TokenSequence(sequence.token_ids_L, mask_L), _select(targets, ~bad_M)
        if len(targets):
            sequences.append(sequence)
            kept.append(targets)
    return (_arrays(sequences, TopK.cat(kept)) if kept else None), skipped


def _select(targets: TopK, keep_M: NDArray[np.bool_]) -> TopK:
    return targets[torch.from_numpy(keep_M)]


def _by_sequence(computed: Computed) -> list[TopK]:
    parts: dict[int, TopK] = {}
    for members, host in computed.batches:
        targets = host.wait()
        start = 0
        for s in members:
            stop = start + int(np.count_nonzero(computed.sequences[s].target_mask_L))
            parts[s] = targets[start:stop]
            start = stop
    return [parts[s] for s in range(len(computed.sequences))]


def _arrays(sequences: Sequence[TokenSequence], targets: TopK) -> ShardArrays:
    lengths_S = [len(sequence.token_ids_L) for sequence in sequences]
    digests = [sequence_digest(sequence.token_ids_L, sequence.target_mask_L) for sequence in sequences]
    return ShardArrays(
        token_ids_L=np.concatenate([sequence.token_ids_L for sequence in sequences]),
        offsets_S1=np.concatenate([[0], np.cumsum(lengths_S)]).astype(np.int64),
        sequence_digests_S16=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(sequences), -1),
        target_mask_L=np.concatenate([sequence.target_mask_L for sequence in sequences]),
        topk_ids_NK=targets.ids.numpy().astype(np.uint32),
        topk_logprobs_NK=targets.logprobs.numpy(),
        residual_logprob_N=targets.residual_logprob.numpy(),
        vocab_size=targets.vocab_size,
        beyond=targets.beyond,
        log_partition_N=None if targets.log_partition is None else targets.log_partition.numpy(),
        logit_std_N=None if targets.logit_std is None else targets.logit_std.numpy(),
    )
