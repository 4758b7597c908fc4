"""Shards for hypothesis: every shape that the format allows, and values from ordinary to absurd."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from logitcache.format.arrays import ShardArrays
from logitcache.format.encoding import Encoding, encode_arrays
from logitcache.format.stored import StoredShard

#: Vocabularies: one word, a few, GPT-like, beyond 2^17 and 2^18 (Qwen, Gemma), and the largest there can be.
VOCABULARIES = (1, 2, 7, 300, 49_152, 151_936, 262_145, 2**32)
VALUES = ("model", "ties", "one", "absurd", "-inf")


@st.composite
def shards(draw: st.DrawFn) -> ShardArrays:
    """Any valid shard of up to a few dozen tokens."""
    vocab = draw(st.sampled_from(VOCABULARIES))
    k = draw(st.sampled_from(sorted({1, min(vocab, 5), min(vocab, 64), min(vocab, 300)})))
    lengths = draw(st.lists(st.integers(0, 12), max_size=5))
    return random_shard(
        seed=draw(st.integers(0, 2**32 - 1)),
        lengths=lengths,
        vocab=vocab,
        k=k,
        values=draw(st.sampled_from(VALUES)),
        supervised=draw(st.sampled_from((0.0, 0.5, 1.0))),
        statistics=draw(st.booleans()),
    )


def random_shard(
    seed: int,
    lengths: list[int],
    vocab: int,
    k: int,
    values: str = "model",
    supervised: float = 1.0,
    statistics: bool = False,
) -> ShardArrays:
    """A shard of sequences of these lengths, the same for the same seed."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = random.random(offsets[-1]) < supervised
    mask[offsets[1:][np.diff(offsets) > 0] - 1] = False
    targets = int(mask.sum())
    return ShardArrays(
        token_ids_L=random.integers(0, vocab, offsets[-1], np.int64).astype(np.uint32),
        offsets_S1=offsets,
        sequence_digests_S16=random.integers(0, 256, (len(lengths), 16)).astype(np.uint8),
        target_mask_L=mask,
        topk_ids_NK=_distinct_ids(random, targets, k, vocab),
        topk_logprobs_NK=_values(random, values, (targets, k)),
        residual_logprob_N=_values(random, values, (targets, 1))[:, 0],
        vocab_size=vocab,
        log_partition_N=random.normal(0, 100, targets).astype(np.float32) if statistics else None,
        logit_std_N=random.gamma(1, 3, targets).astype(np.float32) if statistics else None,
    )


def _distinct_ids(random: np.random.Generator, rows: int, k: int, vocab: int) -> NDArray[np.uint32]:
    """Rows of k distinct ids, small ones far more often, the largest of the vocabulary among them."""
    ids = np.empty((rows, k), np.uint32)
    for row in range(rows):
        if k > vocab // 4:
            ids[row] = random.permutation(vocab)[:k]
            continue
        found: dict[int, None] = {vocab - 1: None} if random.random() < 0.5 else {}
        while len(found) < k:
            found |= dict.fromkeys((vocab * random.random(k) ** 4).astype(np.int64).tolist())
        ids[row] = list(found)[:k]
    return ids


def _values(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Rows that don't rise: as a model makes them, tied, all mass on one, of any size, or infinite."""
    if kind == "model":
        values = np.cumsum(random.exponential(0.3, shape), axis=1)
    elif kind == "ties":
        values = random.integers(0, 4, shape) / 64.0
    elif kind == "one":
        values = np.concatenate([np.zeros((shape[0], 1)), np.full((shape[0], shape[1] - 1), 40.0)], axis=1)
    elif kind == "absurd":
        values = 10 ** random.uniform(-40, 38, shape) * random.choice([1, -1], shape, p=[0.9, 0.1])
        values[random.random(shape) < 0.2] = np.inf
    else:
        values = np.full(shape, np.inf)
    return np.ascontiguousarray(-np.sort(values.astype(np.float32), axis=1))


def stored_shard(preset: str = "compact", values: str = "model") -> StoredShard:
    """A shard with classes, two sequences, and an unsupervised position here and there."""
    arrays = random_shard(4, [1100, 40], 3000, 7, values, supervised=0.9, statistics=True)
    return encode_arrays(arrays, Encoding.checked(preset, None))
