"""Speed of encoding and reading a shard on one core, beside plain numpy copies of the same arrays in the same run.

Reading is what training does: read the file, check its SHA-256, decode, and hand out tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import zarr

from benchmarks._prose import add_arguments, join, prose_cache
from logitcache import TopK
from logitcache.format.arrays import ShardArrays
from logitcache.format.encoding import Encoding, decode_arrays
from logitcache.format.formats import ShardFormatName, decode_shard, encode_shard
from logitcache.format.stored import StoredShard, size_limit

FORMATS: tuple[ShardFormatName, ...] = ("zarr", "arrow")


def training_ready(arrays: ShardArrays) -> TopK:
    """The shard's targets as losses take them: int64 ids, float32 log-probs."""
    return TopK(
        torch.from_numpy(arrays.topk_ids_NK.astype(np.int64)),
        torch.from_numpy(arrays.topk_logprobs_NK),
        torch.from_numpy(arrays.residual_logprob_N),
        arrays.vocab_size,
    )


def compact(arrays: ShardArrays) -> tuple[torch.Tensor, ...]:
    """The same without a copy: ids stay 32 bits wide (those below 2^31 read right as int32)."""
    columns = (arrays.topk_ids_NK.view(np.int32), arrays.topk_logprobs_NK, arrays.residual_logprob_N)
    return tuple(torch.from_numpy(column) for column in columns)


def checked(path: Path, digest: bytes) -> bytes:
    payload = path.read_bytes()
    assert hashlib.sha256(payload).digest() == digest
    return payload


def through_zarr(path: Path, digest: bytes) -> ShardArrays:
    """Read a Zarr shard with ``zarr.open_group`` instead: it doesn't check that its chunks are there."""
    payload = checked(path, digest)
    with zarr.storage.ZipStore(path, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        stored = StoredShard({name: np.asarray(array[...]) for name, array in group.arrays()}, dict(group.attrs))
    return decode_arrays(stored, size_limit(len(payload)))


def show(works: Mapping[str, Callable[[], object]], tokens: int, repeats: int) -> list[float]:
    """Print each one's tokens a second of processor time, and return the middles.

    They take turns, so that whatever else runs on the machine slows all alike.
    """
    seconds = np.empty((repeats, len(works)))
    for times in seconds:
        for place, work in enumerate(works.values()):
            start = time.process_time()
            work()
            times[place] = time.process_time() - start
    best, middle = tokens / seconds.min(0), tokens / np.median(seconds, 0)
    for name, most, usual in zip(works, best, middle, strict=True):
        print(f"  {most:12,.0f} tokens/s at best, {usual:12,.0f} in the middle   {name}", flush=True)
    return list(middle)


def show_plain(arrays: ShardArrays, path: Path, repeats: int) -> float:
    """What numpy takes for the same arrays; returns the speed of a copy."""
    np.savez(path, allow_pickle=False, **arrays.columns())
    digest = hashlib.sha256(path.read_bytes()).digest()
    columns = list(arrays.columns().values())
    works = {
        "copy of the arrays in memory": lambda: [column.copy() for column in columns],
        "read .npz, uncompressed": lambda: dict(np.load(path)),
        "SHA-256 of the .npz, no decoding": lambda: checked(path, digest),
    }
    return show(works, arrays.tokens, repeats)[0]


def show_format(shard_format: ShardFormatName, arrays: ShardArrays, path: Path, copy: float, repeats: int) -> None:
    """What a shard takes, beside the speed of a copy in memory."""
    payload = encode_shard(arrays, Encoding(), shard_format)
    path.write_bytes(payload)
    digest = hashlib.sha256(payload).digest()

    def read() -> ShardArrays:
        return decode_shard(checked(path, digest), shard_format)

    works: dict[str, Callable[[], object]] = {
        "encode": lambda: encode_shard(arrays, Encoding(), shard_format),
        "read, check, decode, tensors of 32 bits": lambda: compact(read()),
        "read, check, decode, TopK with int64 ids": lambda: training_ready(read()),
    }
    if shard_format == "zarr":
        works["tensors of 32 bits, read by zarr.open_group"] = lambda: compact(through_zarr(path, digest))
    encoded, decoded, _, *opened = show(works, arrays.tokens, repeats)
    print(f"  a copy in memory is {copy / decoded:.1f} times as fast as reading, {copy / encoded:.0f} as encoding")
    for speed in opened:
        print(f"  reading by zarr.open_group is {speed / decoded:.2f} times as fast as reading")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arrays = join(prose_cache(arguments), arguments.top_k)
    print(f"{arrays.tokens:,} tokens, K = {arguments.top_k}, one thread, {arguments.repeats} times")
    with tempfile.TemporaryDirectory() as folder:
        print("plain numpy")
        copy = show_plain(arrays, Path(folder) / "plain.npz", arguments.repeats)
        for shard_format in FORMATS:
            print(f"{shard_format}, compact")
            show_format(shard_format, arrays, Path(folder) / shard_format, copy, arguments.repeats)


if __name__ == "__main__":
    main()
