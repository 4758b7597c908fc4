"""Speed of encoding and reading a shard on one core, beside plain numpy copies of the same arrays in the same run.

Reading is what training does: read the file, check its SHA-256, decode, and hand out tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks._prose import add_arguments, join, prose_cache
from logitcache import TopK
from logitcache.format.arrays import ShardArrays
from logitcache.format.encoding import Encoding
from logitcache.format.formats import decode_shard, encode_shard


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


def show(name: str, work: Callable[[], object], tokens: int, repeats: int) -> float:
    """Print tokens a second of processor time: this process has one thread, and others may run beside it."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    best, middle = tokens / min(seconds), tokens / statistics.median(seconds)
    print(f"  {best:12,.0f} tokens/s at best, {middle:12,.0f} in the middle   {name}", flush=True)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arrays = join(prose_cache(arguments), arguments.top_k)
    tokens, repeats = arrays.tokens, arguments.repeats
    print(f"{tokens:,} tokens, K = {arguments.top_k}, one thread, {repeats} times")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.npz"
        np.savez(plain, **arrays.columns())
        digest = hashlib.sha256(plain.read_bytes()).digest()
        print("plain numpy")
        columns = list(arrays.columns().values())
        copy = show("copy of the arrays in memory", lambda: [column.copy() for column in columns], tokens, repeats)
        show("read .npz, uncompressed", lambda: dict(np.load(plain)), tokens, repeats)
        show("SHA-256 of the .npz, no decoding", lambda: checked(plain, digest), tokens, repeats)
        for shard_format in ("zarr", "arrow"):
            print(f"{shard_format}, compact")
            path = Path(folder) / shard_format
            payload = encode_shard(arrays, Encoding(), shard_format)
            path.write_bytes(payload)
            digest = hashlib.sha256(payload).digest()

            def read(path: Path = path, digest: bytes = digest, shard_format: str = shard_format) -> ShardArrays:
                return decode_shard(checked(path, digest), shard_format)  # type: ignore[arg-type]

            encoded = show("encode", lambda name=shard_format: encode_shard(arrays, Encoding(), name), tokens, repeats)
            decoded = show(
                "read, check, decode, tensors of 32 bits", lambda read=read: compact(read()), tokens, repeats
            )
            show("read, check, decode, TopK with int64 ids", lambda read=read: training_ready(read()), tokens, repeats)
            print(
                f"  a copy in memory is {copy / decoded:.1f} times as fast as reading, {copy / encoded:.0f} as encoding"
            )


if __name__ == "__main__":
    main()
