"""Shards in memory behind the part of a cache that streaming reads: for thousands of small cases a second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitcache.format.arrays import ShardArrays


@dataclass(frozen=True)
class _Entry:
    sequences: int
    tokens: int


class MemoryCache:
    """Each sequence starts with its own number in the cache plus one; larger tokens follow."""

    def __init__(self, shards: list[ShardArrays], digest: str) -> None:
        self._shards, self.digest = shards, digest
        self.shards = [_Entry(shard.sequences, shard.tokens) for shard in shards]
        self.sequences = sum(entry.sequences for entry in self.shards)

    def read_shard(self, index: int) -> ShardArrays:
        return self._shards[index]

    def read_lengths(self, index: int) -> NDArray[np.int64]:
        return np.diff(self._shards[index].offsets_S1)

    @classmethod
    def random(
        cls,
        *,
        shards: int,
        largest: int,
        longest: int,
        seed: int,
        k: int = 4,
        vocab_size: int = 50_000,
        first_word: int = 40_000,
        first_number: int = 1,
    ) -> MemoryCache:
        """``shards`` shards of 1 to ``largest`` sequences of 2 to ``longest`` tokens, with random targets."""
        generator = np.random.default_rng(seed)
        made, number = [], first_number
        for _ in range(shards):
            lengths = generator.integers(2, longest + 1, size=int(generator.integers(1, largest + 1)))
            offsets = np.cumsum([0, *lengths]).astype(np.int64)
            tokens = generator.integers(first_word, vocab_size, size=int(offsets[-1])).astype(np.uint32)
            tokens[offsets[:-1]] = np.arange(number, number + len(lengths))
            number += len(lengths)
            mask = np.ones(len(tokens), dtype=bool)
            mask[offsets[1:] - 1] = False
            mask &= generator.random(len(tokens)) < 0.9
            rows = int(mask.sum())
            values = -np.sort(generator.exponential(2.0, size=(rows, k)).astype(np.float32) + 1.5, axis=1)
            made.append(
                ShardArrays(
                    token_ids_L=tokens,
                    offsets_S1=offsets,
                    sequence_digests_S16=np.zeros((len(lengths), 16), dtype=np.uint8),
                    target_mask_L=mask,
                    topk_ids_NK=generator.integers(0, vocab_size, size=(rows, k)).astype(np.uint32),
                    topk_logprobs_NK=values,
                    residual_logprob_N=np.full(rows, -3.0, dtype=np.float32),
                    vocab_size=vocab_size,
                )
            )
        return cls(made, f"sha256:{seed}-{first_number}")
