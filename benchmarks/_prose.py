"""Real targets for the format's benchmarks: English prose under SmolLM2, dumped once and kept under ``build/``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import logitcache as lc
from benchmarks._teacher import DATA, REPO, TEACHER
from logitcache.format.arrays import ShardArrays

TOP_K = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for teacher, text and the dump that is kept."""
    parser.add_argument("--teacher", default=str(TEACHER))
    parser.add_argument("--data", nargs="+", default=[str(DATA / "**" / "*.txt")])
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


def take(arrays: ShardArrays, sequences: NDArray[np.int64]) -> ShardArrays:
    """Some sequences of a shard as a shard of their own; one may come more than once."""
    tokens = np.concatenate([np.r_[arrays.tokens_of(sequence)] for sequence in sequences])
    rows = np.concatenate([np.r_[arrays.targets_of(sequence)] for sequence in sequences])
    ends = np.cumsum(np.diff(arrays.offsets_S1)[sequences])
    return replace(
        arrays,
        token_ids_L=arrays.token_ids_L[tokens],
        offsets_S1=np.concatenate([[0], ends]).astype(np.int64),
        sequence_digests_S16=arrays.sequence_digests_S16[sequences],
        target_mask_L=arrays.target_mask_L[tokens],
        topk_ids_NK=arrays.topk_ids_NK[rows],
        topk_logprobs_NK=arrays.topk_logprobs_NK[rows],
        residual_logprob_N=arrays.residual_logprob_N[rows],
    )


def split(arrays: ShardArrays, tokens: int) -> list[ShardArrays]:
    """The shard as smaller ones of whole sequences, each of about so many tokens."""
    numbers_S = arrays.offsets_S1[:-1] // tokens
    return [take(arrays, np.flatnonzero(numbers_S == number)) for number in np.unique(numbers_S)]
