"""Prepare a decoded shard for batches: leave out positions, and put ids and log-probs into narrow dtypes.

Shape legend: L tokens of the shard, N positions with targets, K entries a position.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.format.arrays import ShardArrays
from logitcache.stream.selection import Selection
from logitcache.targets.narrow import id_dtype


def prepared(arrays: ShardArrays, vocab_limit: int | None = None, selection: Selection | None = None) -> ShardArrays:
    """Prepare a shard for :func:`logitcache.stream.batches.collate`.

    Args:
        arrays: as decoded.
        vocab_limit: leave out positions that need this id or a larger one, see :func:`known_positions`.
        selection: which positions to keep.
    """
    if vocab_limit is not None and vocab_limit < arrays.vocab_size:
        arrays = keep_targets(arrays, known_positions(arrays, vocab_limit))
        # The student has no embedding for such a token. It is replaced by 0: no position after it has targets.
        arrays = replace(arrays, token_ids_L=np.where(arrays.token_ids_L < vocab_limit, arrays.token_ids_L, 0))
    if selection is not None and not selection.keeps_all:
        arrays = keep_targets(arrays, selection.keep(arrays))
    arrays = replace(
        arrays,
        topk_ids_NK=narrow_ids(arrays.topk_ids_NK, arrays.vocab_size),
        topk_logprobs_NK=narrow_logprobs(arrays.topk_logprobs_NK),
    )
    # Each shard is prepared in a thread of its own. Batches are made one after the other, and need both of these.
    _ = arrays.target_positions_N, arrays.target_offsets_S1
    return arrays


def narrow_ids(ids_NK: NDArray[np.uint32], vocab_size: int) -> NDArray[Any]:
    """Ids in the narrowest dtype of torch that holds the vocabulary: uint16, int32 or int64."""
    dtype = id_dtype(vocab_size)
    if dtype == torch.int32:
        return ids_NK.view(np.int32)
    return ids_NK.astype(np.uint16 if dtype == torch.uint16 else np.int64)


def narrow_logprobs(logprobs_NK: NDArray[np.float32]) -> NDArray[Any]:
    """Log-probs as float16 if that changes none of them.

    It changes none with the presets half, compact and tiny, except for values below -64 nats: a shard that holds such a
    value keeps float32.
    """
    narrow_NK = np.empty(logprobs_NK.shape, np.float16)
    rows = max(1, (1 << 18) // max(1, logprobs_NK.shape[1]))  # so many fit in the CPU's cache
    for start in range(0, len(narrow_NK), rows):
        wide = torch.from_numpy(logprobs_NK[start : start + rows])
        # torch converts ten times as fast as numpy.
        half = torch.from_numpy(narrow_NK[start : start + rows]).copy_(wide)
        if not torch.equal(half.float(), wide):
            return logprobs_NK
    return narrow_NK


def known_positions(arrays: ShardArrays, vocab_limit: int) -> NDArray[np.bool_]:
    """``[N]``, False where the targets, the next token or an earlier token have ids from ``vocab_limit`` on."""
    unknown_L1 = np.concatenate([[0], np.cumsum(arrays.token_ids_L >= vocab_limit)])
    starts_L = np.repeat(arrays.offsets_S1[:-1], np.diff(arrays.offsets_S1))
    read_L = unknown_L1[np.minimum(np.arange(len(starts_L)) + 2, len(starts_L))] - unknown_L1[starts_L]
    known_N: NDArray[np.bool_] = (read_L[arrays.target_mask_L] == 0) & np.all(arrays.topk_ids_NK < vocab_limit, axis=1)
    return known_N


def keep_targets(arrays: ShardArrays, keep_N: NDArray[np.bool_]) -> ShardArrays:
    """The same shard with the targets of some positions only; tokens and sequences don't change."""
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
