"""Mutated caches whose digests were made to fit again: what an attacker, not an accident, would hand in.

Run as a program, it makes and reads mutants in a process of its own with limits on memory and time, watches which
files are touched, and prints one JSON line for each mutant that was handled in any other way than by being read or by a
LogitCacheError. ``python mutants.py KIND FORMAT FIRST_SEED COUNT DIRECTORY``
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from cache_builder import build_cache, make_arrays
from mutators import MUTATORS, ORIGINAL, Parts
from transformers import PreTrainedTokenizerFast

import logitcache as lc
from logitcache.cache.tokenizer import tokenizer_files
from logitcache.cache.verify import verify_cache

SECONDS = 5.0
MEMORY = 1 << 30


class TooSlowError(BaseException):
    """A mutant took longer than it may."""


def use(root: Path, kind: str) -> str:
    """Do with a mutant what users do; returns how it ended."""
    ended = "read"
    try:
        cache = lc.open(root)
        for item in cache:
            assert len(item.positions) == len(item.targets)
        cache.to_arrow().read_all()
        if kind == "tokenizer":
            cache.load_tokenizer().decode([1, 2, 3])
    except lc.LogitCacheError as error:
        ended = type(error).__name__
    try:
        report = verify_cache(root, deep=True, workers=1)
    except lc.LogitCacheError:
        return ended
    if ended not in ("read", "ModelError") and report.ok:
        raise AssertionError(f"reading says {ended}, verify says sound")
    return ended


def watch_files(root: Path, seen: list[str]) -> None:
    """Record every path outside the cache that is opened, listed, linked or removed from here on."""
    watched = {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink"}
    allowed = (str(root), sys.prefix, sys.base_prefix, str(Path(lc.__file__).parent), "/proc", "/sys")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in watched and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.fsdecode(arguments[0])
            if not path.startswith(allowed):
                seen.append(f"{event} {path}")

    sys.addaudithook(hook)


def status(name: str) -> int:
    """A figure of this process from the system, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def limit_memory() -> None:
    """A backstop at twice what a mutant may use, so that a failing run doesn't take the machine with it."""
    limit = status("VmData") + 2 * MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def restart_peak() -> int:
    """Start a new measurement of peak memory; returns what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def small_tokenizer() -> dict[str, bytes]:
    """The files of a real tokenizer with a few dozen words."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>"], show_progress=False)
    model.train_from_iterator(["the cat sat on the mat and the rat sat on the cat"] * 10, trainer)
    return tokenizer_files(PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token="<s>"))


def main() -> None:
    kind, shard_format, first, count, directory = sys.argv[1:]
    base, root = Path(directory) / "base", Path(directory) / "mutant"
    arrays = [make_arrays(seed, statistics=seed == 1 and kind == "shard") for seed in range(2)]
    tokenizer = None
    if kind == "tokenizer":
        tokenizer = small_tokenizer()
    build_cache(base, shard_format, arrays, tokenizer=tokenizer)  # type: ignore[arg-type]
    ORIGINAL.update(json.loads((base / "manifest.json").read_bytes()))
    counts = [(item.sequences, item.tokens, item.targets) for item in arrays]
    Parts.read(base).write(root, counts)
    assert use(root, kind) == "read"
    assert {path.name: path.read_bytes() for path in root.rglob("*.arrow")} == {
        path.name: path.read_bytes() for path in base.rglob("*.arrow")
    }
    seen: list[str] = []
    watch_files(root, seen)
    limit_memory()

    def too_slow(*_: Any) -> None:
        raise TooSlowError

    signal.signal(signal.SIGALRM, too_slow)
    ends: dict[str, int] = {}
    most = 0
    for seed in range(int(first), int(first) + int(count)):
        parts = Parts.read(base)
        MUTATORS[kind](random.Random(f"{kind} {shard_format} {seed}"), parts)
        parts.write(root, counts)
        del parts
        seen.clear()
        before, started = restart_peak(), time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        fault = None
        try:
            ended = use(root, kind)
            ends[ended] = ends.get(ended, 0) + 1
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is what this looks for
            fault = "".join(traceback.format_exception(error))[-1500:]
        signal.setitimer(signal.ITIMER_REAL, 0)
        took, grown = time.monotonic() - started, status("VmHWM") - before
        most = max(most, grown)
        if seen or fault or grown > MEMORY or took > SECONDS:
            line = {"seed": seed, "fault": fault, "outside": seen[:5], "grown": grown, "seconds": took}
            print(json.dumps(line), flush=True)
    print(json.dumps({"ends": ends, "most_memory": most}))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
