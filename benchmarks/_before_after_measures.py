"""One measure of ``benchmarks.before_after``, in a process of its own: seconds of each piece of work, as JSON.

``logitcache`` is that of one revision, ``benchmarks`` that of the working tree, so both revisions do the same work.
Only public names are used, and those in ``MOVED``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import logitcache as lc
from benchmarks.loss_head import Setup

FORMATS = ("zarr", "arrow")
TOP_K, LOSS = 64, "bild"
#: Steps of training that aren't counted, and that are.
WARM_UP, STEPS = 2, 8
#: Where a name stood, the newest place first.
MOVED = {
    "Encoding": ("logitcache.format.encoding", "logitcache.cache.encoding"),
    "ShardArrays": ("logitcache.format.arrays", "logitcache.cache.arrays"),
    "encode_shard": ("logitcache.format.formats", "logitcache.cache.formats"),
    "decode_shard": ("logitcache.format.formats", "logitcache.cache.formats"),
    "publish_shard": ("logitcache.cache.publish",),
    "finalize_cache": ("logitcache.cache.publish",),
}


def moved(name: str) -> Any:
    """A name that isn't public, from the place where this revision has it."""
    for module in MOVED[name]:
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("logitcache"):
                raise
    raise SystemExit(f"{name} isn't in {' or '.join(MOVED[name])}: add where it is to MOVED in {__file__}")


def load_shard(path: Path) -> Any:
    """A shard's arrays from an .npz file of its columns and ``vocab_size``."""
    with np.load(path) as columns:
        fields = dict(columns)
    return moved("ShardArrays")(**fields | {"vocab_size": int(fields["vocab_size"])})


def seconds(work: Callable[[], object], times: int) -> float:
    """Median of several runs, after one that isn't counted."""
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def prepare(shared: Path, own: Path, teacher: str) -> dict[str, float]:
    """No measure: the cache for loader and training, in this revision's format."""
    small = lc.dump(teacher=teacher, data=[str(shared / "short.txt")], out=own / "small", top_k=TOP_K)
    entries, encoding = [], moved("Encoding")()
    for path in sorted(shared.glob("shard-*.npz")):
        arrays = load_shard(path)
        payload = moved("encode_shard")(arrays, encoding, "zarr")
        entries.append(moved("publish_shard")(own / "cache", payload, arrays, "zarr"))
    files = {path.name: path.read_bytes() for path in small.tokenizer_dir.iterdir()}
    moved("finalize_cache")(own / "cache", entries, small.manifest.provenance, encoding, "zarr", files)
    return {}


def dump(shared: Path, own: Path, teacher: str) -> dict[str, float]:
    """A process that dumps a text, from its start: loading libraries and the teacher included."""
    cache = lc.dump(
        teacher=teacher,
        data=[str(shared / "text.txt")],
        out=own / f"dump-{os.getpid()}",
        top_k=TOP_K,
        max_length=512,
    )
    return {f"process that dumps {cache.manifest.totals.tokens:,} tokens": time.time() - _started()}


def _started() -> float:
    """When this process was started; ``benchmarks.before_after`` says so."""
    return float(os.environ["BEFORE_AFTER_STARTED"])


def shards(shared: Path, own: Path, teacher: str) -> dict[str, float]:
    """Encoding a shard, and reading its file, checking and decoding it; a large shard and a small one."""
    found = {}
    for source, times in ((shared / "whole.npz", 5), (shared / "shard-00.npz", 25)):
        arrays = load_shard(source)
        for shard_format in FORMATS:
            path, what = own / f"shard-{os.getpid()}", f"a shard, {shard_format}, {arrays.tokens:,} tokens"
            encode = partial(moved("encode_shard"), arrays, moved("Encoding")(), shard_format)
            found[f"encode {what}"] = seconds(encode, times)
            path.write_bytes(payload := encode())
            digest = hashlib.sha256(payload).digest()
            found[f"read and decode {what}"] = seconds(partial(_read, path, digest, shard_format), times)
    return found


def _read(path: Path, digest: bytes, shard_format: str) -> object:
    payload = path.read_bytes()
    assert hashlib.sha256(payload).digest() == digest
    return moved("decode_shard")(payload, shard_format)


def loader(shared: Path, own: Path, teacher: str) -> dict[str, float]:
    """A pass of ``lc.stream`` over the cache."""
    cache = lc.open(str(own / "cache"))
    taken = seconds(lambda: sum(batch.tokens for batch in lc.stream(cache, batch_size=8)), 5)
    return {f"stream {cache.manifest.totals.tokens:,} tokens": taken}


def train(shared: Path, own: Path, teacher: str) -> dict[str, float]:
    """A step of ``lc.train``: the median of those after warm-up."""
    ends: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    lc.train(
        cache=str(own / "cache"),
        student=str(shared / "student"),
        out=own / f"trained-{os.getpid()}",
        loss=LOSS,
        batch_size=2,
        max_steps=WARM_UP + STEPS,
        checkpoint_every=0,
        write_report=False,
    )
    hook.remove()
    assert len(ends) == WARM_UP + STEPS
    return {"training step, 2 rows of 512 tokens": statistics.median(np.diff(ends)[WARM_UP - 1 :].tolist())}


def head(shared: Path, own: Path, teacher: str) -> dict[str, float]:
    """``lc.losses.linear_loss``, forward and backward."""
    setup = Setup(576, 49_152, 2048, TOP_K)
    return {"output head and BiLD, 2,048 tokens": seconds(lambda: setup.run(LOSS), 5)}


MEASURES = {"dump": dump, "shards": shards, "loader": loader, "train": train, "head": head}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=["prepare", *MEASURES])
    parser.add_argument("--tree", type=Path, required=True, help="logitcache must come from here")
    parser.add_argument("--shared", type=Path, required=True, help="inputs, the same for both revisions")
    parser.add_argument("--own", type=Path, required=True, help="a folder of this revision's own")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    if not Path(lc.__file__).is_relative_to(options.tree):
        sys.exit(f"logitcache comes from {lc.__file__}, not from {options.tree}")
    torch.set_num_threads(options.threads)
    measure = (MEASURES | {"prepare": prepare})[options.measure]
    print(json.dumps(measure(options.shared, options.own, options.teacher)))


if __name__ == "__main__":
    main()
