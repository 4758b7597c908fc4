"""What training from an S3 server costs over training from disk: a pass over one cache, the same steps each time.

Three ways in turn, several times over: from disk; from the server with nothing kept here yet, so that every shard is
fetched during the pass; from the server when the local cache holds the shards. Each is divided by the mean of the two
passes from disk around it (the order is a b c a, then a c b a), and the middle of these ratios counts. The two passes
from disk, one divided by the other, say how much of it is chance.

The student is tiny, which makes what reading costs as large as it can be. The server is a real one, SeaweedFS, on this
machine's loopback (extra `dev`), and takes its time from the same processors. Needs the demo's teacher once, for real
predictions (`make teacher`).

    python -m benchmarks.remote_training --markdown benchmarks/results/remote_training.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import logitcache as lc
from benchmarks._markdown import table, write_tables
from benchmarks._teacher import REPO
from benchmarks._tiled import real_cache, tiled_cache
from benchmarks.train_wait import make_student, run_steps
from logitcache.cache.remote import open_remote
from logitcache.losses import StudentWithLoss
from logitcache.share.pushing import push
from logitcache.stores.local_cache import LocalSettings

sys.path.insert(0, str(REPO / "tests"))
from s3_server import start_s3  # the tests' own way of starting the server

#: layers, width, feed-forward width, heads, key-value heads
STUDENT = (2, 64, 128, 2, 1)
#: Rows of the table, by the name in the result.
WAYS = {
    "from_s3_nothing_kept_here": "from S3, nothing kept here: every shard is fetched on the way",
    "from_s3_shards_kept_here": "from S3, shards in the local cache",
    "from_disk_again": "from disk again: chance",
}


@dataclass(frozen=True)
class Pass:
    """Seconds of a pass, opening included; of its steps after the first batch; and spent waiting after it."""

    whole: float
    later: float
    waited: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="how often each way is measured")
    parser.add_argument("--shards", type=int, default=24, help="shards of the cache")
    parser.add_argument("--shard-tokens", type=int, default=4_096, help="tokens of each")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a step")
    parser.add_argument("--markdown", type=Path, help="write the ratios there, with their quartiles")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    server = start_s3()
    os.environ.update(server.environment())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = tiled_cache(folder, real_cache(folder), shards=arguments.shards, tokens_per_shard=arguments.shard_tokens)
        url = server.place()
        push(disk.root, url)
        result = measure(disk, url, folder, arguments)
    print(json.dumps(result, indent=2))
    if arguments.markdown:
        write_tables(arguments.markdown, [ratios_table(result)])


def ratios_table(result: dict[str, Any]) -> str:
    """Time over that of the passes from disk around it."""
    rows = []
    for key, title in WAYS.items():
        found = result[key]
        low, high = found["its_quartiles"]
        later = f"{found['ratio_after_the_first_batch']:.3f} ({low:.3f}–{high:.3f})"
        rows.append([title, f"{found['ratio']:.3f}", later])
    return table(["", "whole pass, opening included", "after the first batch"], rows)


def measure(disk: lc.Cache, url: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All ways in turn, after a pass that nobody counts."""
    module = make_student(disk.vocab_size, *STUDENT)
    steps = sum(1 for _ in lc.stream(disk, batch_size=arguments.batch_size))
    numbers = iter(range(10_000))
    warm = LocalSettings(folder / "warm")
    openers: dict[str, Callable[[], lc.Cache]] = {
        "disk": lambda: lc.open(disk.root),
        "cold": lambda: open_remote(url, LocalSettings(folder / f"cold-{next(numbers)}")),
        "warm": lambda: open_remote(url, warm),
    }
    for way in ("disk", "warm"):
        one_pass(module, openers[way], steps, arguments.batch_size)
    found: dict[str, list[Pass]] = defaultdict(list)
    ratios: dict[str, list[Pass]] = defaultdict(list)
    for repeat in range(arguments.repeats):
        order = ("disk", "cold", "warm", "disk") if repeat % 2 == 0 else ("disk", "warm", "cold", "disk")
        taken = [one_pass(module, openers[way], steps, arguments.batch_size) for way in order]
        for way, result in zip(order, taken, strict=True):
            found[way].append(result)
        first, last = taken[0], taken[-1]
        around = Pass((first.whole + last.whole) / 2, (first.later + last.later) / 2, 0.0)
        ratios["disk"].append(divided(last, first))
        for way, result in zip(order[1:-1], taken[1:-1], strict=True):
            ratios[way].append(divided(result, around))
    totals = disk.manifest.totals
    return {
        "cache": f"{totals.tokens:,} tokens, {totals.bytes:,} bytes in {totals.shards} shards",
        "steps": steps,
        "repeats": arguments.repeats,
        "tokens_per_second_from_disk": round(totals.tokens / statistics.median(run.whole for run in found["disk"])),
        "from_s3_nothing_kept_here": summary(found["cold"], ratios["cold"]),
        "from_s3_shards_kept_here": summary(found["warm"], ratios["warm"]),
        "from_disk_again": summary(found["disk"], ratios["disk"]),
    }


def one_pass(module: StudentWithLoss, opener: Callable[[], lc.Cache], steps: int, batch_size: int) -> Pass:
    started = time.perf_counter()
    timed = run_steps(module, lc.stream(opener(), batch_size=batch_size), steps)
    return Pass(time.perf_counter() - started, timed.seconds - timed.first, timed.waited - timed.first)


def divided(one: Pass, other: Pass) -> Pass:
    return Pass(one.whole / other.whole, one.later / other.later, one.waited)


def summary(found: list[Pass], ratios: list[Pass]) -> dict[str, object]:
    later = [ratio.later for ratio in ratios]
    quartiles = statistics.quantiles(later, n=4) if len(later) > 1 else later
    return {
        "seconds": round(statistics.median(run.whole for run in found), 2),
        "ratio": round(statistics.median(ratio.whole for ratio in ratios), 4),
        "ratio_after_the_first_batch": round(statistics.median(later), 4),
        "its_quartiles": [round(value, 4) for value in (quartiles[0], quartiles[-1])],
        "seconds_waiting_after_the_first_batch": round(statistics.median(run.waited for run in found), 3),
    }


if __name__ == "__main__":
    main()
