"""Checks of a shard's arrays before they are encoded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import TargetsError
from logitcache.format.arrays import DIGEST_BYTES, ShardArrays


def last_positions(offsets_S1: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of the last token of every sequence that has tokens."""
    positions: NDArray[np.int64] = offsets_S1[1:][np.diff(offsets_S1) > 0] - 1
    return positions


def check_arrays(arrays: ShardArrays) -> None:
    """Check a shard's arrays.

    Raises:
        TargetsError: they don't fit together, or hold a value that isn't allowed; the message names the field.
    """
    tokens, targets, k = arrays.tokens, arrays.targets, arrays.k
    offsets = arrays.offsets_S1
    shapes = {
        "target_mask_L": (tokens,),
        "topk_ids_NK": (targets, k),
        "topk_logprobs_NK": (targets, k),
        "sequence_digests_S16": (arrays.sequences, DIGEST_BYTES),
        "log_partition_N": (targets,),
        "logit_std_N": (targets,),
    }
    columns = arrays.columns()
    for name, shape in shapes.items():
        if name in columns and columns[name].shape != shape:
            raise TargetsError(
                f"{name} is {columns[name].shape}; with the other arrays of the shard it must be {shape}"
            )
    if not 1 <= k <= arrays.vocab_size <= 1 << 32:
        raise TargetsError(f"K = {k} of a vocabulary of {arrays.vocab_size}: need 1 <= K <= V <= 2^32")
    arrays.beyond.check(k)
    if targets * k >= 1 << 32:
        raise TargetsError(f"{targets} positions of {k} entries are too many for one shard: make shards smaller")
    if offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 0).any():
        raise TargetsError(f"offsets_S1 must rise from 0 to the number of tokens, {tokens}")
    if np.count_nonzero(arrays.target_mask_L) != targets:
        raise TargetsError(
            f"target_mask_L marks {np.count_nonzero(arrays.target_mask_L)} positions; targets are {targets}"
        )
    if arrays.target_mask_L[last_positions(offsets)].any():
        raise TargetsError("target_mask_L marks a sequence's last token, which has no next token to predict")
    if targets and int(arrays.topk_ids_NK.max()) >= arrays.vocab_size:
        raise TargetsError(f"top-k id {int(arrays.topk_ids_NK.max())} is outside the vocabulary of {arrays.vocab_size}")
    _check_values(arrays)


def _check_values(arrays: ShardArrays) -> None:
    logprobs_NK = arrays.topk_logprobs_NK
    falls = (logprobs_NK[:, 1:] <= logprobs_NK[:, :-1]).all()
    if arrays.targets and not (falls and (logprobs_NK[:, 0] < np.inf).all()):
        raise TargetsError("topk_logprobs_NK must not rise along K, and must hold neither NaN nor +inf")
    if not (arrays.residual_logprob_N < np.inf).all():
        raise TargetsError("residual_logprob_N must hold neither NaN nor +inf")
