"""Small caches for tests: random but valid content, the same for the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.format.arrays import ShardArrays, sequence_digest
from logitcache.format.calibrate import calibrate
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName, encode_shard
from logitcache.format.manifest import Card, Provenance, Teacher
from logitcache.format.table import ShardEntry

VOCAB = 300
TOP_K = 5
TOKENIZER = {"tokenizer.json": b'{"a": 1}', "tokenizer_config.json": b'{"b": 2}'}


def make_arrays(
    seed: int, lengths: Sequence[int] = (6, 0, 1, 9), *, vocab: int = VOCAB, k: int = TOP_K, statistics: bool = False
) -> ShardArrays:
    """A shard with sequences of these lengths; about one position in four has no targets."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = random.integers(0, vocab, int(offsets[-1])).astype(np.uint32)
    mask = random.random(len(tokens)) < 0.75
    mask[offsets[1:][np.diff(offsets) > 0] - 1] = False
    logits = random.normal(0, 3, (int(mask.sum()), vocab))
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    ids = np.argsort(-logprobs, axis=1)
    ordered = np.take_along_axis(logprobs, ids, 1)
    residual = np.logaddexp.reduce(ordered[:, k:], axis=1) if k < vocab else np.full(len(ordered), -np.inf)
    spans = [slice(*pair) for pair in itertools.pairwise(offsets)]
    digests = b"".join(sequence_digest(tokens[span], mask[span]) for span in spans)
    return ShardArrays(
        token_ids_L=tokens,
        offsets_S1=offsets,
        sequence_digests_S16=np.frombuffer(digests, np.uint8).reshape(len(lengths), 16),
        target_mask_L=mask,
        topk_ids_NK=ids[:, :k].astype(np.uint32),
        topk_logprobs_NK=ordered[:, :k].astype(np.float32),
        residual_logprob_N=residual.astype(np.float32),
        vocab_size=vocab,
        log_partition_N=np.logaddexp.reduce(logits, axis=1).astype(np.float32) if statistics else None,
        logit_std_N=logits.std(1, ddof=1).astype(np.float32) if statistics else None,
    )


def make_provenance(**changes: Any) -> Provenance:
    """Plausible provenance of a cache of these tests."""
    digest = "sha256:" + "ab" * 32
    fields: dict[str, Any] = {
        "teacher": Teacher(name="org/teacher", dtype="float32", engine="transformers", weights_digest=digest),
        "tokenizer_digest": digest,
        "corpus_digest": digest,
        "top_k": TOP_K,
        "vocab_size": VOCAB,
        "positions": "all",
        "max_length": 512,
        "software": {"logitcache": "0.1.0"},
    }
    return Provenance(**fields | changes)


def publish(root: Path, shards: Sequence[ShardArrays], shard_format: ShardFormatName) -> list[ShardEntry]:
    """Publish shards of an unfinished cache."""
    encoding = Encoding()
    return [publish_shard(root, encode_shard(shard, encoding, shard_format), shard, shard_format) for shard in shards]


def build_cache(
    root: Path,
    shard_format: ShardFormatName = "zarr",
    shards: Sequence[ShardArrays] | None = None,
    *,
    tokenizer: dict[str, bytes] | None = None,
    **provenance: Any,
) -> str:
    """Write a finished cache, three small shards unless others are given, and return its digest."""
    shards = [make_arrays(seed) for seed in range(3)] if shards is None else shards
    entries = publish(root, shards, shard_format)
    measured = calibrate(shards[0], Encoding(), encode_shard(shards[0], Encoding(), shard_format)) if shards else None
    return finalize_cache(
        root,
        entries,
        make_provenance(**provenance),
        Encoding(),
        shard_format,
        TOKENIZER if tokenizer is None else tokenizer,
        calibration=measured,
        card=Card(licence="CC0-1.0", corpus="random", contact="nobody"),
    )


FORMATS: tuple[ShardFormatName, ...] = ("zarr", "arrow")
#: Empty sequences, an empty shard, and sequences without any targets.
SHARDS = [make_arrays(seed, lengths) for seed, lengths in enumerate([(6, 0, 1, 9), (), (3,), (0, 0, 12)])]
