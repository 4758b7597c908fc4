"""A larger cache of real predictions: a small dump of the example text, repeated until it is large enough."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

import logitcache as lc
from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.cache.reader import Cache, open_cache
from logitcache.format.arrays import ShardArrays
from logitcache.format.encoding import Encoding
from logitcache.format.formats import encode_shard

REPO = Path(__file__).resolve().parent.parent
TEACHER = REPO / ".models" / "SmolLM2-135M-Instruct"
HELDOUT = REPO / "examples" / "data" / "heldout" / "*.txt"


def real_cache(place: Path, top_k: int = 64) -> Cache:
    """The held-out address of the examples, dumped with the demo's teacher (about 4,000 tokens)."""
    return lc.dump(teacher=str(TEACHER), data=[str(HELDOUT)], out=place / "real", top_k=top_k, max_length=512)


def tiled_cache(place: Path, small: Cache, *, shards: int, tokens_per_shard: int, preset: str = "compact") -> Cache:
    """``shards`` equal-sized shards of about ``tokens_per_shard`` tokens; no two are equal."""
    whole = small.read_shard(0)
    times = max(1, tokens_per_shard // whole.tokens)
    root = place / f"tiled-{shards}"
    encoding = Encoding(preset=preset)  # type: ignore[arg-type]
    entries = []
    for number in range(shards):
        arrays = _repeat(whole, times, number)
        entries.append(publish_shard(root, encode_shard(arrays, encoding, "zarr"), arrays, "zarr"))
    files = {path.name: path.read_bytes() for path in small.tokenizer_dir.iterdir()}
    finalize_cache(root, entries, small.manifest.provenance, encoding, "zarr", files)
    return open_cache(root)


def _repeat(arrays: ShardArrays, times: int, roll: int) -> ShardArrays:
    lengths = np.diff(arrays.offsets_S1)
    order = np.roll(np.arange(len(lengths)), roll)
    counts = np.concatenate([[0], np.cumsum(arrays.target_mask_L)])[arrays.offsets_S1]
    tokens = np.concatenate([np.arange(arrays.offsets_S1[s], arrays.offsets_S1[s + 1]) for s in order])
    rows = np.concatenate([np.arange(counts[s], counts[s + 1]) for s in order])
    return dataclasses.replace(
        arrays,
        token_ids_L=np.tile(arrays.token_ids_L[tokens], times),
        offsets_S1=np.concatenate([[0], np.cumsum(np.tile(lengths[order], times))]).astype(np.int64),
        sequence_digests_S16=np.tile(arrays.sequence_digests_S16[order], (times, 1)),
        target_mask_L=np.tile(arrays.target_mask_L[tokens], times),
        topk_ids_NK=np.tile(arrays.topk_ids_NK[rows], (times, 1)),
        topk_logprobs_NK=np.tile(arrays.topk_logprobs_NK[rows], (times, 1)),
        residual_logprob_N=np.tile(arrays.residual_logprob_N[rows], times),
    )
