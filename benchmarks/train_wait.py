"""What feeding from a cache costs in training: steps fed from the stream against the same steps fed from memory.

Two students: a "small" one of the demo's size (10 layers of the teacher's width), and a "tiny" one (2 layers, 64 wide),
whose steps are so short that whatever feeding costs shows. Beginning is part of it: the first batch waits until the
shards it draws from are decoded. Windows are small, so that a run of a few steps decodes little more than it uses, as a
long run with large windows does.

Needs the demo's teacher once, for real predictions (`make teacher`).

    python -m benchmarks.train_wait
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import logitcache as lc
from benchmarks._tiled import real_cache, tiled_cache
from logitcache.cache.reader import Cache
from logitcache.losses import StudentWithLoss
from logitcache.stream import Batch

#: layers, width, feed-forward width, heads, key-value heads, steps of each run, runs of each kind
STUDENTS = {"small": (10, 576, 1536, 9, 3, 8, 3), "tiny": (2, 64, 128, 2, 1, 80, 4)}


def llama_config(vocab_size: int, layers: int, width: int, inner: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
    )


def make_student(vocab_size: int, *shape: int) -> StudentWithLoss:
    """With random weights, and BiLD; ``shape`` as in ``STUDENTS``."""
    torch.manual_seed(0)
    return StudentWithLoss(LlamaForCausalLM(llama_config(vocab_size, *shape)), lc.losses.get("bild"), vocab_size)


@dataclass(frozen=True)
class Timed:
    """Seconds of some steps, how many of them went by waiting for a batch, and how many for the first one."""

    seconds: float
    waited: float
    first: float


def run_steps(module: StudentWithLoss, batches: Iterable[Batch], steps: int) -> Timed:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    iterator = iter(batches)
    waits, started = [], time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(iterator)
        waits.append(time.perf_counter() - asked)
        module(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return Timed(time.perf_counter() - started, sum(waits), waits[0])


def compare(cache: Cache, name: str) -> dict[str, float | str]:
    """Both ways in turn, several times over; medians."""
    *shape, steps, repeats = STUDENTS[name]
    layout = {"batch_size": 4, "epochs": None, "window_tokens": 2 * 16_384}
    stored = list(islice(lc.stream(cache, **layout), steps))  # type: ignore[arg-type]
    module = make_student(cache.vocab_size, *shape)
    run_steps(module, stored, 2)
    memory, streamed = [], []
    for number in range(2 * repeats):
        # In the order a b b a …, so that a machine that slows down slows both.
        if number % 4 in (0, 3):
            memory.append(run_steps(module, stored, steps))
        else:
            streamed.append(run_steps(module, lc.stream(cache, **layout), steps))  # type: ignore[arg-type]

    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    seconds = median(run.seconds for run in streamed)
    return {
        "student": name,
        "steps": steps,
        "seconds_per_step": round(seconds / steps, 4),
        "tokens_per_second": round(sum(batch.tokens for batch in stored) / seconds),
        "first_batch_seconds": round(median(run.first for run in streamed), 3),
        "waiting_share": round(median(run.waited / run.seconds for run in streamed), 5),
        "waiting_share_after_the_first_batch": round(
            median((run.waited - run.first) / (run.seconds - run.first) for run in streamed), 5
        ),
        "step_time_ratio": round(seconds / median(run.seconds for run in memory), 4),
        "step_time_ratio_after_the_first_batch": round(
            median(run.seconds - run.first for run in streamed) / median(run.seconds - run.first for run in memory), 4
        ),
        "spread_of_the_runs_from_memory": round(
            max(run.seconds for run in memory) / min(run.seconds for run in memory) - 1, 4
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", choices=STUDENTS, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        cache = tiled_cache(Path(folder), real_cache(Path(folder)), shards=32, tokens_per_shard=16_384)
        print(json.dumps([compare(cache, name) for name in arguments.student or STUDENTS], indent=2))


if __name__ == "__main__":
    main()
