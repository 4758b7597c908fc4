"""Bytes per token of the cache format, all in, beside the entropy bound, a plain format, and what else was tried.

Text: the example addresses; teacher: SmolLM2. All in means shards, shard table and manifest; the tokenizer, which is
the same for any size of cache, is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

import logitcache as lc
from benchmarks._prose import add_arguments, join, prose_cache
from logitcache.cache.convert import convert_cache
from logitcache.format.arrays import ShardArrays
from logitcache.format.calibrate import calibrate
from logitcache.format.encoding import Encoding
from logitcache.format.encoding_ids import _CLASS_COUNT, _class_places, _rank
from logitcache.format.encoding_symbols import to_symbols
from logitcache.format.formats import encode_shard
from logitcache.format.stored import to_planes

PRESETS = ("exact", "half", "compact", "tiny")


def size(*arrays: NDArray[Any], level: int = 1) -> int:
    """Bytes of arrays under plain zstd."""
    return sum(len(zstd.compress(np.ascontiguousarray(array), level)) for array in arrays)


def all_in(cache: lc.Cache) -> float:
    """Bytes a token of a cache on disk, without its tokenizer."""
    files = [path for path in cache.root.rglob("*") if path.is_file() and path.parent != cache.tokenizer_dir]
    return sum(path.stat().st_size for path in files) / cache.manifest.totals.tokens


def entropy(numbers: NDArray[Any]) -> float:
    """Bytes that an ideal coder needs for numbers drawn one by one from their own frequencies."""
    counts = np.bincount(numbers.ravel())
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def presets(cache: lc.Cache, arrays: ShardArrays, top_k: int) -> None:
    """The product's own sizes."""
    print(f"\nAll in, bytes a token, K = {top_k}, shards as `dump` makes them")
    with tempfile.TemporaryDirectory() as folder:
        for preset in PRESETS:
            row = []
            for shard_format in ("zarr", "arrow"):
                out = Path(folder) / f"{preset}-{shard_format}"
                encoding = Encoding.checked(preset, None)
                convert_cache(cache, out, shard_format=shard_format, encoding=encoding, top_k=top_k)
                row.append(f"{shard_format} {all_in(lc.open(out)):7.2f}")
            print(f"  {preset:8} error <= {encoding.bound:.6g} nat  {'  '.join(row)}")
    print("\nOne shard, compact, by part")
    for shard_format in ("zarr", "arrow"):
        payload = encode_shard(arrays, Encoding(), shard_format)
        made = calibrate(arrays, Encoding(), payload)
        parts = "  ".join(f"{name} {value:.2f}" for name, value in made.parts.items())
        print(f"  {shard_format:6} {made.bytes_per_token:7.2f}  {parts}  (largest error {made.max_error:.6g})")
    for k in (8, 16, 32, 128):
        cut = join(cache, k)
        print(f"  zarr   {len(encode_shard(cut, Encoding(), 'zarr')) / cut.tokens:7.2f}  with K = {k}")


def tried_ids(arrays: ShardArrays) -> None:
    """What else could hold the ids; tables are counted."""
    tokens, ids_NK = arrays.tokens, arrays.topk_ids_NK
    table, ranks_NK = _rank(ids_NK)
    shared = size(to_planes(np.diff(table, prepend=np.uint32(0))), level=9)

    def show(name: str, total: float) -> None:
        print(f"  {total / tokens:7.2f}  {name}")

    print("\nIds, bytes a token")
    show("bound: entropy of the ids, each drawn on its own (no table counted)", entropy(ids_NK))
    show("uint32, zstd 9", size(ids_NK, level=9))
    show("rank, byte planes, K-major, zstd 1", shared + size(*to_planes(ranks_NK.T)))
    show("rank, symbols and extra bits, K-major, zstd 1", shared + size(*to_symbols("x", ranks_NK.T).values()))
    row_tokens = arrays.token_ids_L[arrays.target_mask_L]
    rows = np.bincount(row_tokens)[row_tokens]
    for least in (32, 256):
        found, classes_N = np.unique(np.where(rows >= least, row_tokens, -1), return_inverse=True)
        total = shared + _with_classes(ranks_NK, classes_N, len(table))
        show(f"a table for each preceding token seen {least} times ({len(found)} tables)", total)
    from logitcache.format.encoding_ids import encode_topk_ids

    order = np.argsort(row_tokens, kind="stable")
    stored = encode_topk_ids(ids_NK, order)
    big = size(*(array for name, array in stored.items() if name.startswith("id_places")))
    small = size(*(array for name, array in stored.items() if not name.startswith("id_places")), level=9)
    count = len(stored["id_class_sizes"])
    show(f"a table for each class of rows ({count} classes): the format", big + small)
    show("  of which tables and classes", small)
    try:
        from pcodec import ChunkConfig, standalone
    except ImportError:
        print("           (PCodec isn't installed)")
        return
    show("rank, PCodec 8", shared + len(standalone.simple_compress(ranks_NK.T.ravel(), ChunkConfig())))
    classes_N = np.empty(len(order), np.int64)
    classes_N[order] = stored["id_classes"]
    places = _class_places(ranks_NK, classes_N.astype(np.uint8), len(table))[2]
    show(
        "a table for each class of rows, PCodec 8",
        small + len(standalone.simple_compress(places.T.ravel(), ChunkConfig())),
    )


def _with_classes(ranks_NK: NDArray[Any], classes_N: NDArray[np.int64], table_size: int) -> int:
    """Bytes of class tables and places, for classes that need no storing; any number of classes."""
    counts = np.bincount(
        (classes_N[:, None] * table_size + ranks_NK).ravel(), minlength=(classes_N.max() + 1) * table_size
    )
    counts = counts.reshape(-1, table_size)
    entries, places = [], np.empty((len(counts), table_size), np.uint32)
    for row, held in enumerate(counts):
        chosen = np.flatnonzero(held >= _CLASS_COUNT)
        chosen = chosen[np.lexsort((chosen, -np.floor(2 * np.log2(held[chosen]))))]
        places[row] = np.arange(table_size) + len(chosen)
        places[row, chosen] = np.arange(len(chosen))
        entries.append(chosen.astype(np.uint16))
    tables = to_planes(np.diff(np.concatenate(entries), prepend=np.uint16(0)))
    return size(tables, level=9) + size(*to_symbols("x", places[classes_N[:, None], ranks_NK].T).values())


def tried_values(arrays: ShardArrays) -> None:
    """What else could hold the log-probs."""
    tokens, logprobs_NK = arrays.tokens, arrays.topk_logprobs_NK
    half = np.ascontiguousarray(logprobs_NK.T.astype(np.float16)).view(np.uint16)
    print("\nLog-probs, bytes a token")
    print(f"  {size(*to_planes(half), level=9) / tokens:7.2f}  float16, byte planes, K-major, zstd 9")
    for step in (64, 32, 16, 8):
        codes_KN = np.clip(np.rint(logprobs_NK.T * -step), 0, 0xFFFE).astype(np.uint16)
        steps_KN = np.diff(codes_KN, axis=0, prepend=np.uint16(0))
        planes = to_planes(steps_KN)
        from logitcache.format.encoding_values import encode_logprobs

        pairs = size(*encode_logprobs(logprobs_NK, "steps", 1 / step).values())
        bound = sum(entropy(row) for row in steps_KN)
        print(
            f"  step 1/{step:<3} differences, byte planes: zstd 1 {size(*planes) / tokens:6.2f}, "
            f"zstd 19 {size(*planes, level=19) / tokens:6.2f}; two to a byte: {pairs / tokens:6.2f}; "
            f"entropy of each rank's differences {bound / tokens:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--top-k", type=int, default=64)
    arguments = parser.parse_args()
    cache = prose_cache(arguments)
    arrays = join(cache, arguments.top_k)
    print(f"{arrays.tokens:,} tokens, {arrays.targets:,} targets, V = {arrays.vocab_size:,}")
    presets(cache, arrays, arguments.top_k)
    bits = int(arrays.vocab_size - 1).bit_length()
    plain = arrays.targets * (arguments.top_k * (2 + bits / 8) + 4) + 4 * arrays.tokens
    print(f"  plain  {plain / arrays.tokens:7.2f}  float16, ids packed to {bits} bits, float32 residual, uint32 tokens")
    tried_ids(arrays)
    tried_values(arrays)


if __name__ == "__main__":
    main()
