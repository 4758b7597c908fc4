"""The content of one shard, decoded: the arrays that every shard format stores and returns.

Shape legend: S sequences, L tokens of all of them, N positions that have targets, K entries a position.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.targets.beyond import ALL_RANKED, Beyond

DIGEST_BYTES = 16


@dataclass(frozen=True, eq=False)
class ShardArrays:
    """One shard's content. Position ``t`` holds the teacher's prediction for token ``t + 1`` of its sequence.

    Attributes:
        token_ids_L: uint32, the token ids of all sequences, one sequence after the other.
        offsets_S1: int64 ``[S + 1]``, sequence ``s`` is ``token_ids_L[offsets_S1[s]:offsets_S1[s + 1]]``.
        sequence_digests_S16: uint8 ``[S, 16]``, identity of each sequence (see ``sequence_digest``).
        target_mask_L: bool, True where the position has targets; never at a sequence's last token.
        topk_ids_NK: uint32, in the order of the True positions of ``target_mask_L``. A stream keeps them in the dtype
            that :func:`logitcache.targets.narrow.id_dtype` names.
        topk_logprobs_NK: float32, non-increasing along K, nats. A stream keeps them as float16 if that is exact.
        residual_logprob_N: float32, log of the mass outside the top K, nats.
        vocab_size: V, the length of the teacher's logit vector.
        log_partition_N, logit_std_N: float32, or None if the dump didn't store them.
        beyond: how many of the K entries, the last ones, were not chosen by rank.
    """

    token_ids_L: NDArray[np.uint32]
    offsets_S1: NDArray[np.int64]
    sequence_digests_S16: NDArray[np.uint8]
    target_mask_L: NDArray[np.bool_]
    topk_ids_NK: NDArray[Any]
    topk_logprobs_NK: NDArray[Any]
    residual_logprob_N: NDArray[np.float32]
    vocab_size: int
    log_partition_N: NDArray[np.float32] | None = None
    logit_std_N: NDArray[np.float32] | None = None
    beyond: Beyond = ALL_RANKED

    @property
    def sequences(self) -> int:
        return len(self.offsets_S1) - 1

    @property
    def tokens(self) -> int:
        return len(self.token_ids_L)

    @property
    def targets(self) -> int:
        return len(self.residual_logprob_N)

    @property
    def k(self) -> int:
        return int(self.topk_ids_NK.shape[1])

    @property
    def ranked(self) -> int:
        """How many entries, the first ones, are the teacher's most probable."""
        return self.k - self.beyond.count

    @cached_property
    def target_positions_N(self) -> NDArray[np.int64]:
        """int64 ``[N]``: the index in ``token_ids_L`` of each row of targets."""
        return np.flatnonzero(self.target_mask_L)

    @cached_property
    def target_offsets_S1(self) -> NDArray[np.int64]:
        """int64 ``[S + 1]``: sequence ``s`` has the rows ``[target_offsets_S1[s]:target_offsets_S1[s + 1]]``."""
        before_L1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.target_mask_L, dtype=np.int64)])
        offsets_S1: NDArray[np.int64] = before_L1[self.offsets_S1]
        return offsets_S1

    def tokens_of(self, sequence: int) -> slice:
        """Which of the L tokens are a sequence's."""
        return slice(int(self.offsets_S1[sequence]), int(self.offsets_S1[sequence + 1]))

    def targets_of(self, sequence: int) -> slice:
        """Which of the N rows are a sequence's."""
        return slice(int(self.target_offsets_S1[sequence]), int(self.target_offsets_S1[sequence + 1]))

    def top(self, k: int) -> ShardArrays:
        """Keep the first k entries of every position, at most the ranked ones; the others' mass joins the residual."""
        assert 1 <= k <= self.ranked
        dropped_N = np.logaddexp.reduce(self.topk_logprobs_NK[:, k:].astype(np.float64), axis=1)
        return replace(
            self,
            topk_ids_NK=np.ascontiguousarray(self.topk_ids_NK[:, :k]),
            topk_logprobs_NK=np.ascontiguousarray(self.topk_logprobs_NK[:, :k]),
            residual_logprob_N=np.logaddexp(self.residual_logprob_N, dropped_N).astype(np.float32),
            beyond=ALL_RANKED,
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays by field name, without those that are None."""
        names = (name for name in self.__dataclass_fields__ if name not in ("vocab_size", "beyond"))
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def sequence_digest(token_ids_L: NDArray[Any], target_mask_L: NDArray[np.bool_]) -> bytes:
    """Identity of one sequence: the first 16 bytes of a SHA-256 over its length, its token ids and its mask.

    The length is hashed as uint64 and the ids as uint32, both little-endian. The mask is packed, eight positions in a
    byte, the first position in the lowest bit.
    """
    digest = hashlib.sha256(len(token_ids_L).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(token_ids_L, "<u4").tobytes())
    digest.update(np.packbits(np.asarray(target_mask_L, np.bool_), bitorder="little").tobytes())
    return digest.digest()[:DIGEST_BYTES]
