"""One sequence of a cache as tensors, copied from its decoded shard.

Shape legend: L tokens of a sequence or shard, M positions of a sequence that have targets, N the same of a shard, K
entries per position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.format.arrays import ShardArrays
from logitcache.targets.topk import TopK


@dataclass(frozen=True, eq=False)
class CachedSequence:
    """One sequence and the teacher's predictions in it.

    Attributes:
        token_ids: ``[L]`` int64.
        target_mask: ``[L]`` bool, True where a position has targets.
        targets: the teacher's top K at those positions, M rows.
        digest: 32 hex digits, the sequence's identity.
    """

    token_ids: Tensor
    target_mask: Tensor
    targets: TopK
    digest: str

    @cached_property
    def positions(self) -> Tensor:
        """``[M]`` int64: row m of ``targets`` predicts the token after ``token_ids[positions[m]]``."""
        return self.target_mask.nonzero()[:, 0]

    @cached_property
    def labels(self) -> Tensor:
        """``[M]`` int64: the token of the text that follows each position."""
        return self.token_ids[self.positions + 1]

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        return (
            f"CachedSequence({len(self):,} tokens, {len(self.targets):,} targets × top {self.targets.k} "
            f"of {self.targets.vocab_size:,}, digest {self.digest[:12]}…)"
        )


def cut_sequence(arrays: ShardArrays, index: int) -> CachedSequence:
    """One sequence of a decoded shard, as a copy."""
    tokens, rows = arrays.tokens_of(index), arrays.targets_of(index)
    return CachedSequence(
        token_ids=_tensor(arrays.token_ids_L[tokens], np.int64),
        target_mask=_tensor(arrays.target_mask_L[tokens], np.bool_),
        targets=TopK(
            ids=_tensor(arrays.topk_ids_NK[rows], np.int64),
            logprobs=_tensor(arrays.topk_logprobs_NK[rows], np.float32),
            residual_logprob=_tensor(arrays.residual_logprob_N[rows], np.float32),
            vocab_size=arrays.vocab_size,
            log_partition=_optional(arrays.log_partition_N, rows),
            logit_std=_optional(arrays.logit_std_N, rows),
            **arrays.beyond.recorded(),
        ),
        digest=arrays.sequence_digests_S16[index].tobytes().hex(),
    )


def _tensor(values: NDArray[Any], dtype: type[np.generic]) -> Tensor:
    # A copy, so that a caller who changes a sequence doesn't change the shard kept in memory.
    return torch.from_numpy(np.array(values, dtype=dtype, order="C"))


def _optional(values_N: NDArray[np.float32] | None, rows: slice) -> Tensor | None:
    return None if values_N is None else _tensor(values_N[rows], np.float32)
