"""Memory that streaming takes: over ten epochs, and for a cache of 100 times the size; windows of 8,192 tokens.

Needs the demo's teacher once, for real predictions (`make teacher`).

    python -m benchmarks.stream_memory
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import logitcache as lc
from benchmarks._memory import peak_mib, reset_peak, resident_mib
from benchmarks._tiled import real_cache, tiled_cache
from logitcache.cache.reader import Cache

TOKENS_PER_SHARD = 4096
WINDOW_TOKENS = 8192


def peaks(cache: Cache, epochs: int, **settings: Any) -> list[float]:
    """Largest resident memory of each epoch, in MiB over what the process held before."""
    gc.collect()
    before, found = resident_mib(), []
    stream = lc.stream(cache, batch_size=8, window_tokens=WINDOW_TOKENS, **settings)
    for _ in range(epochs):
        reset_peak()
        for _ in stream:
            pass
        found.append(round(peak_mib() - before, 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--shards", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        small = real_cache(place)
        few, many = (
            tiled_cache(place, small, shards=shards, tokens_per_shard=TOKENS_PER_SHARD)
            for shards in (arguments.shards, 100 * arguments.shards)
        )
        for settings in ({}, {"pack_tokens": 1024}):
            peaks(few, 1, **settings)  # everything is imported, the allocator warm
        base = resident_mib()
        epochs = peaks(few, arguments.epochs)
        small_peak = max(epochs)
        result = {
            "cache_tokens": few.manifest.totals.tokens,
            "large_cache_tokens": many.manifest.totals.tokens,
            "process_mib": round(base, 1),
            "peak_mib_of_each_epoch": epochs,
            "growth_from_the_second_epoch_to_the_last_mib": round(epochs[-1] - epochs[1], 1),
            "peak_mib_of_the_large_cache": (large := peaks(many, 1))[0],
            "ratio_with_the_process": round((base + large[0]) / (base + small_peak), 3),
            "packed_peak_mib": (packed := peaks(few, 1, pack_tokens=1024))[0],
            "packed_peak_mib_of_the_large_cache": (packed_large := peaks(many, 1, pack_tokens=1024))[0],
            "packed_ratio_with_the_process": round((base + packed_large[0]) / (base + packed[0]), 3),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
