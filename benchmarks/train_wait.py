"""What feeding from a cache costs in training: steps fed from the stream against the same steps fed from memory.

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
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import logitcache as lc
from benchmarks._tiled import real_cache, tiled_cache
from logitcache.cache import Cache
from logitcache.streaming import Batch
from logitcache.training.module import DistillModule
from logitcache.training.trainer import inputs_of


def small_student(vocab_size: int) -> DistillModule:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return DistillModule(LlamaForCausalLM(config), lc.losses.get("bild"), vocab_size, vocab_size)


def run_steps(module: DistillModule, batches: Iterable[Batch], steps: int) -> tuple[float, float]:
    """Seconds of ``steps`` optimizer steps, and the share of them spent waiting for a batch."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    iterator = iter(batches)
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(iterator)
        waited += time.perf_counter() - asked
        module(**inputs_of(batch))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - started
    return seconds, waited / seconds


def compare(cache: Cache, steps: int, repeats: int) -> dict[str, float]:
    """Both ways in turn, several times over; medians."""
    layout = {"batch_size": 2, "epochs": None}
    stored = [batch for batch, _ in zip(lc.stream(cache, **layout), range(steps), strict=False)]  # type: ignore[arg-type]
    module = small_student(cache.vocab_size)
    run_steps(module, stored, min(steps, 5))
    memory, streamed, shares = [], [], []
    for _ in range(repeats):
        memory.append(run_steps(module, stored, steps)[0])
        seconds, share = run_steps(module, lc.stream(cache, **layout), steps)  # type: ignore[arg-type]
        streamed.append(seconds)
        shares.append(share)
    return {
        "steps": steps,
        "tokens_per_second": round(sum(batch.tokens for batch in stored) / statistics.median(streamed)),
        "step_time_ratio": round(statistics.median(streamed) / statistics.median(memory), 4),
        "waiting_share": round(statistics.median(shares), 5),
        "worst_waiting_share": round(max(shares), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        cache = tiled_cache(Path(folder), real_cache(Path(folder)), shards=4, tokens_per_shard=65_536)
        print(json.dumps(compare(cache, arguments.steps, arguments.repeats), indent=2))


if __name__ == "__main__":
    main()
