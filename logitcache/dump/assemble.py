"""Put the targets that an engine gave for a shard, in any order, into the order of the shard's sequences.

Shape legend: S sequences of a shard, L tokens, N positions that have targets, M those of one sequence, K entries per
position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.data import TokenSequence
from logitcache.errors import ModelError, NonFiniteLogitsError
from logitcache.format.arrays import ShardArrays, sequence_digest
from logitcache.targets.topk import TopK


@dataclass(frozen=True, eq=False)
class Computed:
    """The targets that an engine gave for a shard.

    Attributes:
        sequences: the shard's sequences, in order.
        scored: indices of sequences, and the targets of those sequences in that order, as
            :meth:`logitcache.engines.Engine.score` gives them.
        head_dtype: dtype of the logits, if it isn't that of the teacher's arithmetic.
    """

    sequences: list[TokenSequence]
    scored: list[tuple[Sequence[int], TopK]]
    head_dtype: str | None = None

    @property
    def vocab_size(self) -> int:
        """V, the length of the teacher's logit vectors."""
        return self.scored[0][1].vocab_size


def assemble(
    computed: Computed, where: Callable[[int], str], *, skip_non_finite: bool
) -> tuple[ShardArrays | None, int]:
    """The shard's arrays, and the number of positions left out because their logits weren't finite.

    Args:
        computed: the shard's sequences and targets.
        where: names a sequence of the shard, for the error.
        skip_non_finite: leave such positions out, and sequences without other positions. The arrays are None if
            nothing is left.

    Raises:
        NonFiniteLogitsError: logits weren't finite; the message names the sequence and the position.
        ModelError: the engine didn't give each sequence once, with a row for each position that has a target.
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
    counts = [int(np.count_nonzero(sequence.target_mask_L)) for sequence in computed.sequences]
    given = sorted(s for which, _ in computed.scored for s in which)
    rows = sum(len(targets) for _, targets in computed.scored)
    if given != list(range(len(counts))) or rows != sum(counts):
        raise ModelError(
            f"the engine gave {rows} rows of targets for {len(given)} sequences; it was asked for {sum(counts)} rows "
            f"for {len(counts)}"
        )
    parts: dict[int, TopK] = {}
    for which, targets in computed.scored:
        start = 0
        for s in which:
            parts[s] = targets[start : start + counts[s]]
            start += counts[s]
    return [parts[s] for s in range(len(counts))]


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
