"""Mutated caches whose digests fit: only ``LogitCacheError``, quickly, in little memory, and nothing outside touched.

1,000 mutants as it stands; 10,000 with ``LOGITCACHE_FULL_FUZZ=1``. What is made and checked is in ``mutants.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.hostile
MUTANTS = Path(__file__).with_name("mutants.py")
TIMES = 10 if os.environ.get("LOGITCACHE_FULL_FUZZ") else 1


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "shard_format", "count"),
    [
        ("manifest", "zarr", 200),
        ("manifest", "arrow", 50),
        ("table", "zarr", 200),
        ("table", "arrow", 50),
        ("shard", "zarr", 200),
        ("shard", "arrow", 200),
        ("tokenizer", "zarr", 100),
    ],
)
def test_mutants(kind: str, shard_format: str, count: int, tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured through /proc")
    command = [sys.executable, "-W", "ignore", str(MUTANTS), kind, shard_format, "0", str(TIMES * count), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(MUTANTS.parent.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    # The Rust library behind tokenizers prints notes of its own on stdout.
    *wrong, last = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert wrong == []
    ended = last["ends"]
    assert sum(ended.values()) == TIMES * count
    # The mutators do reach past the digests: some mutants are valid, most are refused.
    assert set(ended) <= {"read", "CacheFormatError", "CorruptCacheError", "CacheNotFoundError", "ModelError"}
    assert ended.get("read", 0) < TIMES * count / 2
