"""Bytes per token of the cache format, all in, beside the entropy bound, a plain format, and what else was tried.

Text: the example addresses; teacher: SmolLM2. All in means shards, shard table and manifest; the tokenizer, which is
the same for any size of cache, is left out. PCodec is measured where it is installed; ``--markdown`` asks for it.

    pip install pcodec
    python -m benchmarks.format_size --markdown benchmarks/results/format_size.md
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

import logitcache as lc
from benchmarks._markdown import table, write_tables
from benchmarks._prose import add_arguments, join, prose_cache
from logitcache.cache.convert import convert_cache
from logitcache.format.arrays import ShardArrays
from logitcache.format.calibrate import calibrate
from logitcache.format.encoding import Encoding
from logitcache.format.encoding_ids import _CLASS_COUNT, _class_places, _rank, encode_topk_ids
from logitcache.format.encoding_symbols import to_symbols
from logitcache.format.encoding_values import encode_logprobs
from logitcache.format.formats import ShardFormatName, encode_shard
from logitcache.format.stored import to_planes

PRESETS = ("exact", "half", "compact", "tiny")
FORMATS: tuple[ShardFormatName, ...] = ("zarr", "arrow")
#: How often a preceding token must come to get a table of its own.
COMMON = 32
#: Steps of a nat, by their inverse.
STEPS = (64, 32, 16)
HAS_PCODEC = importlib.util.find_spec("pcodec") is not None
PAIRS = "two to a byte, zstd 1"


@dataclass(frozen=True)
class Tried:
    """A way to hold the ids, its bytes in all, and whether it is the format's."""

    name: str
    bytes: float
    detail: str = ""
    chosen: bool = False


def bold(cell: str, chosen: bool = True) -> str:
    return f"**{cell}**" if chosen else cell


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


def sizes(cache: lc.Cache, arrays: ShardArrays) -> str:
    """The product's own sizes, shards as ``dump`` makes them, beside a plain format."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in PRESETS:
            encoding, found = Encoding.checked(preset, None), []
            for shard_format in FORMATS:
                out = Path(folder) / f"{preset}-{shard_format}"
                convert_cache(cache, out, shard_format=shard_format, encoding=encoding, top_k=arrays.k)
                found.append(bold(f"{all_in(lc.open(out)):.1f}", preset == Encoding().preset))
            error = f"{Fraction(encoding.bound)} nat" if encoding.bound else "0"
            rows.append([f"`{preset}`", error, *found])
    bits = int(arrays.vocab_size - 1).bit_length()
    plain = arrays.targets * (arrays.k * (2 + bits / 8) + 4) + 4 * arrays.tokens
    rows.append([f"float16 and ids packed to {bits} bits", "1/64 nat to −64", f"{plain / arrays.tokens:.1f}", ""])
    return table(["", "error at most", "Zarr, bytes a token", "Arrow"], rows)


def details(cache: lc.Cache, arrays: ShardArrays) -> Iterator[str]:
    """Lines on what one shard's bytes are, by part, and what they are with another K."""
    for shard_format in FORMATS:
        made = calibrate(arrays, Encoding(), encode_shard(arrays, Encoding(), shard_format))
        parts = ", ".join(f"{name} {value:.2f}" for name, value in made.parts.items())
        yield f"one shard, {shard_format}: {made.bytes_per_token:.2f} ({parts}; largest error {made.max_error:.6g})"
    for k in (8, 16, 32, 128):
        cut = join(cache, k)
        yield f"one shard, zarr, K = {k}: {len(encode_shard(cut, Encoding(), 'zarr')) / cut.tokens:.2f}"


def tried_ids(arrays: ShardArrays) -> list[Tried]:
    """What else could hold the ids; tables are counted."""
    ids_NK = arrays.topk_ids_NK
    ranked, ranks_NK = _rank(ids_NK)
    shared = size(to_planes(np.diff(ranked, prepend=np.uint32(0))), level=9)
    symbols = size(*to_symbols("x", ranks_NK.T).values())
    found = [
        Tried("entropy of the ids, each drawn on its own, no table", entropy(ids_NK)),
        Tried("uint32, zstd 9", size(ids_NK, level=9)),
        Tried("place by frequency, byte planes, zstd 1", shared + size(*to_planes(ranks_NK.T))),
        Tried("place by frequency, symbols and extra bits, zstd 1", shared + symbols),
        Tried("place by frequency, PCodec", shared + pcodec_size(ranks_NK.T)),
        _by_token(arrays, ranks_NK, shared, len(ranked)),
        *_by_class(arrays, ranks_NK, len(ranked)),
    ]
    return [tried for tried in found if not math.isnan(tried.bytes)]


def _by_token(arrays: ShardArrays, ranks_NK: NDArray[Any], shared: int, table_size: int) -> Tried:
    """A table for each common preceding token, and one for the rest."""
    tokens_N = arrays.token_ids_L[arrays.target_mask_L]
    common_N = np.bincount(tokens_N)[tokens_N] >= COMMON
    own, classes_N = np.unique(np.where(common_N, tokens_N, -1), return_inverse=True)
    total = shared + _with_classes(ranks_NK, classes_N, table_size)
    return Tried("a table for each preceding token that is common", total, f"{len(own)} tables")


def _by_class(arrays: ShardArrays, ranks_NK: NDArray[Any], table_size: int) -> list[Tried]:
    """What the format does: rows of the same class share a table."""
    order = np.argsort(arrays.token_ids_L[arrays.target_mask_L], kind="stable")
    stored = encode_topk_ids(arrays.topk_ids_NK, order)
    big = size(*(array for name, array in stored.items() if name.startswith("id_places")))
    small = size(*(array for name, array in stored.items() if not name.startswith("id_places")), level=9)
    classes_N = np.empty(len(order), np.uint8)
    classes_N[order] = stored["id_classes"]
    places_NK = _class_places(ranks_NK, classes_N, table_size)[2]
    count, share = len(stored["id_class_sizes"]), small / arrays.tokens
    detail = f"{count} classes; they and their tables take {share:.2f}"
    return [
        Tried("a table for each class of rows, symbols, zstd 1", big + small, detail, chosen=True),
        Tried("the same, PCodec", small + pcodec_size(places_NK.T)),
    ]


def pcodec_size(numbers: NDArray[Any]) -> float:
    """NaN where PCodec isn't installed."""
    if not HAS_PCODEC:
        return math.nan
    from pcodec import ChunkConfig, standalone

    return len(standalone.simple_compress(numbers.ravel(), ChunkConfig()))


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


def tried_values(arrays: ShardArrays) -> str:
    """What else could hold the differences of the log-probs along K."""
    names = ("entropy of each rank's differences", "byte planes, zstd 1", "byte planes, zstd 19")
    rows: dict[str, list[str]] = {name: [name] for name in (*names, PAIRS)}
    for step in STEPS:
        codes_KN = np.clip(np.rint(arrays.topk_logprobs_NK.T * -step), 0, 0xFFFE).astype(np.uint16)
        steps_KN = np.diff(codes_KN, axis=0, prepend=np.uint16(0))
        planes = to_planes(steps_KN)
        found = (
            sum(entropy(row) for row in steps_KN),
            size(*planes),
            size(*planes, level=19),
            size(*encode_logprobs(arrays.topk_logprobs_NK, "steps", 1 / step).values()),
        )
        for row, total in zip(rows.values(), found, strict=True):
            row.append(f"{total / arrays.tokens:.1f}")
    rows[PAIRS] = [bold(cell) for cell in rows[PAIRS]]
    first, *others = (f"1/{step}" for step in STEPS)
    return table(["log-probs, differences along K", f"step {first}", *others], rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    arguments = parser.parse_args()
    if arguments.markdown and not HAS_PCODEC:
        parser.exit(1, "the tables have rows of PCodec: pip install pcodec, or leave out --markdown\n")
    cache = prose_cache(arguments)
    arrays = join(cache, arguments.top_k)
    ids = tried_ids(arrays)
    id_rows = [
        [bold(tried.name, tried.chosen), bold(f"{tried.bytes / arrays.tokens:.1f}", tried.chosen)] for tried in ids
    ]
    tables = [sizes(cache, arrays), table(["ids, tables counted", "bytes a token"], id_rows), tried_values(arrays)]
    print(f"{arrays.tokens:,} tokens, {arrays.targets:,} targets, V = {arrays.vocab_size:,}, K = {arrays.k}\n")
    print("\n\n".join(tables), end="\n\n")
    for line in (*details(cache, arrays), *(f"{tried.name}: {tried.detail}" for tried in ids if tried.detail)):
        print(line)
    if arguments.markdown:
        write_tables(arguments.markdown, tables)


if __name__ == "__main__":
    main()
