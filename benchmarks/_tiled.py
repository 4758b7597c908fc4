"""A larger cache of real predictions: a small dump of the example text, repeated until it is large enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import logitcache as lc
from benchmarks._prose import take
from benchmarks._teacher import DATA, TEACHER
from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.cache.reader import Cache, open_cache
from logitcache.format.encoding import Encoding
from logitcache.format.formats import encode_shard

HELDOUT = DATA / "heldout" / "*.txt"


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
        arrays = take(whole, np.tile(np.roll(np.arange(whole.sequences), number), times))
        entries.append(publish_shard(root, encode_shard(arrays, encoding, "zarr"), arrays, "zarr"))
    files = {path.name: path.read_bytes() for path in small.tokenizer_dir.iterdir()}
    finalize_cache(root, entries, small.manifest.provenance, encoding, "zarr", files)
    return open_cache(root)
