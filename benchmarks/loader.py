"""How fast a cache streams: tokens a second and core, from shards on disk to training-ready batches, at K = 64.

Needs the demo's teacher once, for real predictions (`make teacher`).

    python -m benchmarks.loader
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import logitcache as lc
from benchmarks._tiled import real_cache, tiled_cache
from logitcache.cache.reader import Cache
from logitcache.stream.batches import collate
from logitcache.stream.prepared import prepared


def per_core(work: Callable[[], int]) -> dict[str, float]:
    """Tokens per second of processor time (all threads together) and of the clock."""
    clock, processor = time.perf_counter(), time.process_time()
    tokens = work()
    return {
        "tokens": tokens,
        "tokens_per_core_second": round(tokens / (time.process_time() - processor)),
        "tokens_per_second": round(tokens / (time.perf_counter() - clock)),
    }


def decode_only(cache: Cache) -> int:
    return sum(cache.read_shard(shard).tokens for shard in range(len(cache.shards)))


def collate_only(cache: Cache) -> int:
    """One shard in memory, laid out as batches of 8 sequences again and again."""
    shard = prepared(cache.read_shard(0))
    done = 0
    for _ in range(4):
        for start in range(0, shard.sequences - 7, 8):
            done += collate([[(0, start + row)] for row in range(8)], {0: shard}, shard).tokens
    return done


def streamed(cache: Cache, epochs: int = 1, **settings: int) -> int:
    return sum(batch.tokens for batch in lc.stream(cache, batch_size=8, epochs=epochs, **settings))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--tokens-per-shard", type=int, default=65_536)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        small = real_cache(place)
        cache = tiled_cache(place, small, shards=arguments.shards, tokens_per_shard=arguments.tokens_per_shard)
        streamed(small)  # everything is imported and warm
        result = {
            "top_k": cache.top_k,
            "cache_tokens": cache.manifest.totals.tokens,
            "decode": per_core(lambda: decode_only(cache)),
            "collate": per_core(lambda: collate_only(cache)),
            "stream": per_core(lambda: streamed(cache)),
            "stream_packed": per_core(lambda: streamed(cache, pack_tokens=2048)),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
