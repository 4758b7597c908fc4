"""Open a cache of a million shards: seconds and memory, beside hashing its table and beside reading the same as JSON.

Only the shard table is real; opening reads no shard. Each measurement runs in a process of its own, after its imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from logitcache.cache.publish import remove_scratch
from logitcache.format.encoding import Encoding
from logitcache.format.manifest import Manifest, Provenance, Teacher, Totals, digest_line, file_record
from logitcache.format.table import ShardEntry, shard_path, write_table
from logitcache.utils.atomic import write_file

MEASURE = """
import json, sys, time, hashlib
from pathlib import Path
import logitcache as lc
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":")) / 1024
root, way = Path(sys.argv[1]), sys.argv[2]
before, start = status("VmRSS"), time.perf_counter()
if way == "open":
    cache = lc.open(root)
elif way == "hash":
    hashlib.sha256((root / "shards.arrow").read_bytes()).digest()
else:
    rows = json.loads((root.parent / "table.json").read_bytes())
seconds = time.perf_counter() - start
result = {"seconds": seconds, "peak_mib": status("VmHWM") - before, "kept_mib": status("VmRSS") - before}
if way == "open":
    start = time.perf_counter()
    for sequence in range(0, len(cache), max(1, len(cache) // 10_000)):
        cache.shards[cache.shards.locate(sequence)[0]]
    result["lookup_us"] = (time.perf_counter() - start) / 10_000 * 1e6
print(json.dumps(result))
"""


def build(root: Path, shards: int) -> list[ShardEntry]:
    """Everything of a cache but its shards."""
    digests = np.random.default_rng(0).bytes(32 * shards)
    entries = []
    for row in range(shards):
        sha256 = digests[32 * row : 32 * row + 32].hex()
        entries.append(ShardEntry(shard_path(sha256, "zarr"), sha256, 7_000_000, 64, 65_536, 65_472))
    table, digest = write_table(entries), "sha256:" + "0" * 64
    raw = Manifest(
        provenance=Provenance(
            teacher=Teacher(name="none", dtype="float32", engine="none"),
            tokenizer_digest=digest,
            corpus_digest=digest,
            top_k=64,
            vocab_size=49_152,
            positions="all",
        ),
        encoding=Encoding(),
        shard_format="zarr",
        totals=Totals(
            shards=shards,
            sequences=64 * shards,
            tokens=65_536 * shards,
            targets=65_472 * shards,
            bytes=7_000_000 * shards,
        ),
        shard_table=file_record(table),
    ).to_bytes()
    for name, content in (("shards.arrow", table), ("manifest.sha256", digest_line(raw)), ("manifest.json", raw)):
        write_file(root, name, content)
    (root / "shards").mkdir(exist_ok=True)
    remove_scratch(root)
    return entries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "cache"
        entries = build(root, options.shards)
        (Path(directory) / "table.json").write_text(json.dumps([vars(entry) for entry in entries]))
        size = (root / "shards.arrow").stat().st_size
        del entries
        print(f"{options.shards:,} shards, a table of {size / 2**20:.0f} MiB; best of {options.repeat}")
        results = {}
        for way in ("open", "hash", "json"):
            command = [sys.executable, "-c", MEASURE, str(root), way]
            runs = [json.loads(subprocess.check_output(command)) for _ in range(options.repeat)]
            results[way] = best = min(runs, key=lambda run: run["seconds"])
            ratio = best["seconds"] / results["open"]["seconds"]
            print(
                f"{way:>5}  {best['seconds']:6.3f} s ({ratio:5.2f} × open)   memory: "
                f"{best['peak_mib']:5.0f} MiB at its peak, {best['kept_mib']:5.0f} MiB kept"
            )
        print(f"one lookup, sequence → shard → entry: {results['open']['lookup_us']:.1f} µs")
    opened = results["open"]
    return 0 if opened["seconds"] < 1 and opened["peak_mib"] < 300 else 1


if __name__ == "__main__":
    sys.exit(main())
