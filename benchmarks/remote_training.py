"""What training from an S3 server costs over training from disk: the same steps from both, in turn, after warm-up.

The server is a real one, SeaweedFS, on this machine's loopback (extra `dev`). Needs the demo's teacher
once, for real predictions (`make teacher`).

    python -m benchmarks.remote_training
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import logitcache as lc
from benchmarks._tiled import HELDOUT, TEACHER, tiled_cache
from benchmarks.train_wait import run_steps, small_student
from logitcache.share import open_remote, push
from logitcache.share.local_cache import LocalSettings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from s3_server import start_s3  # the tests' own way of starting the server


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of one measurement")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each, in turn")
    parser.add_argument("--shards", type=int, default=4, help="shards of the cache")
    parser.add_argument("--shard-tokens", type=int, default=65_536, help="tokens of each")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    server = start_s3()
    os.environ.update(server.environment())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = tiled_cache(
            folder, real_predictions(folder), shards=arguments.shards, tokens_per_shard=arguments.shard_tokens
        )
        url = server.place()
        started = time.perf_counter()
        sent = push(disk.root, url)
        seconds = {"push": time.perf_counter() - started}
        remote = open_remote(url, LocalSettings(folder / "local"))
        started = time.perf_counter()
        for index in range(len(remote.shards)):
            remote.read_shard(index)
        seconds["first pass, fetching"] = time.perf_counter() - started
        started = time.perf_counter()
        for index in range(len(disk.shards)):
            disk.read_shard(index)
        seconds["the same from disk"] = time.perf_counter() - started
        print(json.dumps({"bytes": sent.bytes, "seconds": seconds} | compare(disk, remote, arguments), indent=2))


def real_predictions(folder: Path) -> lc.Cache:
    """The teacher's targets for a page of the example text, to be repeated."""
    text = next(HELDOUT.parent.glob(HELDOUT.name)).read_text(encoding="utf-8")[:3_000]
    (folder / "page.txt").write_text(text, encoding="utf-8")
    return lc.dump(teacher=str(TEACHER), data=[str(folder / "page.txt")], out=folder / "real", top_k=64, max_length=128)


def compare(disk: lc.Cache, remote: lc.Cache, arguments: argparse.Namespace) -> dict[str, float]:
    """Both in turn, after a first run of each that nobody counts; medians."""
    module = small_student(disk.vocab_size)
    times: dict[str, list[float]] = {"disk": [], "remote": []}
    processor: dict[str, list[float]] = {"disk": [], "remote": []}
    waits: dict[str, list[float]] = {"disk": [], "remote": []}
    for repeat in range(arguments.repeats + 1):
        for name, cache in (("disk", disk), ("remote", remote)):
            busy = time.process_time()
            taken, waiting = run_steps(module, lc.stream(cache, batch_size=2, epochs=None), arguments.steps)
            if repeat:
                times[name].append(taken)
                waits[name].append(waiting * taken)
                processor[name].append(time.process_time() - busy)
    used = statistics.median(processor["remote"]) / statistics.median(processor["disk"])
    ratios = [remote / disk for disk, remote in zip(times["disk"], times["remote"], strict=True)]
    return {
        "steps": arguments.steps,
        "seconds_from_disk": round(statistics.median(times["disk"]), 3),
        "seconds_from_s3": round(statistics.median(times["remote"]), 3),
        "ratio_of_medians": round(statistics.median(times["remote"]) / statistics.median(times["disk"]), 4),
        "lowest_ratio_of_a_pair": round(min(ratios), 4),
        "highest_ratio_of_a_pair": round(max(ratios), 4),
        "ratio_of_processor_time": round(used, 4),
        "seconds_waiting_from_disk": round(statistics.median(waits["disk"]), 3),
        "seconds_waiting_from_s3": round(statistics.median(waits["remote"]), 3),
    }


if __name__ == "__main__":
    main()
