"""Real targets for the format's benchmarks: English prose under SmolLM2, dumped once and kept under ``build/``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import logitcache as lc
from benchmarks._teacher import REPO, TEACHER
from logitcache.format.arrays import ShardArrays

TOP_K = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for teacher, text and the dump that is kept."""
    parser.add_argument("--teacher", default=str(TEACHER))
    parser.add_argument("--data", nargs="+", default=[str(REPO / "examples" / "data" / "**" / "*.txt")])
    parser.add_argument("--kept", type=Path, default=REPO / "build" / "benchmarks" / "prose.cache")


def prose_cache(arguments: argparse.Namespace) -> lc.Cache:
    """The dump, exact, in shards of the default size; made (some minutes) if it isn't there."""
    if not arguments.kept.exists():
        print(f"dumping into {arguments.kept}, once", flush=True)
        lc.dump(
            teacher=arguments.teacher,
            data=tuple(arguments.data),
            out=arguments.kept,
            top_k=TOP_K,
            max_length=512,
            preset="exact",
        )
    return lc.open(arguments.kept)


def join(cache: lc.Cache, top_k: int) -> ShardArrays:
    """All shards as one, cut to K."""
    parts = [cache.read_shard(index) for index in range(len(cache.shards))]
    lengths = np.concatenate([np.diff(part.offsets_S1) for part in parts])
    joined = {
        name: np.concatenate([part.columns()[name] for part in parts])
        for name in parts[0].columns()
        if name != "offsets_S1"
    }
    whole = replace(parts[0], offsets_S1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), **joined)
    return whole.top(top_k)
