"""A dump beside the bare forward pass: the same model, the same batches, in turns; and the peak memory of each.

The bare pass is what nobody can do without: the model's own forward, and `topk` on its logits. The dump is everything
from the first batch to the last synced shard: top-k in order with its mass, encoding, writing. Loading the model and
tokenising are done once and counted in neither; their seconds are printed beside it.

    python -m benchmarks.dump_overhead --teacher .models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._device import wait
from benchmarks._memory import peak_mib
from benchmarks._teacher import DATA, REPO, TEACHER
from logitcache.dump import DumpConfig
from logitcache.dump.plan import Plan
from logitcache.dump.run import new_plan
from logitcache.dump.settings import Job, resolve
from logitcache.dump.worker import Worker
from logitcache.engines import Engine
from logitcache.engines.batches import cut_into_batches, pad
from logitcache.engines.transformers_engine import TransformersEngine
from logitcache.models import device_of
from logitcache.models.dtypes import DTYPES
from logitcache.models.teacher import load_model
from logitcache.utils.progress import silent

CORPUS = DATA / "heldout" / "1964_lyndon_b_johnson.txt"


@dataclass(frozen=True)
class Seconds:
    """Time on the clock, and time of all the process's threads on a processor."""

    wall: float
    cpu: float


def timed(call: Callable[[], None]) -> Seconds:
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wait()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def bare_pass(model: Any, plan: Plan, job: Job) -> None:
    """Forward passes with top-k over all batches of the plan."""
    assert job.config.batch_tokens is not None
    with torch.inference_mode():
        for shard in range(len(plan)):
            sequences = plan.shard_sequences(shard)
            for members in cut_into_batches([len(s.token_ids_L) for s in sequences], job.config.batch_tokens):
                input_ids_BL, _ = pad([sequences[s] for s in members])
                model(input_ids=input_ids_BL.to(device_of(model)), use_cache=False).logits.topk(job.config.top_k)


def engine_of(model: Any, job: Job) -> Engine:
    """The engine over the model that the bare pass runs."""
    assert job.config.batch_tokens is not None
    return TransformersEngine(model, top_k=job.config.top_k, batch_tokens=job.config.batch_tokens)


def full_dump(engine: Engine, plan: Plan, job: Job, out: Path) -> None:
    """Compute, encode and publish all shards of the plan."""
    out.mkdir()
    (out / ".dump").mkdir()
    Worker(out, plan, job.config, lambda: engine, silent, threading.Event()).run()


def prepare(arguments: argparse.Namespace, scratch: Path) -> tuple[Job, Plan, Any, dict[str, float]]:
    started = time.perf_counter()
    text = scratch / "corpus.txt"
    text.write_text(CORPUS.read_text(encoding="utf-8")[: arguments.characters], encoding="utf-8")
    config = DumpConfig(
        teacher=str(arguments.teacher),
        data=(str(text),),
        out=scratch / "out",
        max_length=arguments.max_length,
        shard_tokens=1024,
        batch_tokens=arguments.batch_tokens,
        device="cpu",
    )
    job = resolve(config)
    plan = new_plan(job, scratch / "plan", silent)
    planned = time.perf_counter()
    model = load_model(job.files, dtype=DTYPES[job.config.dtype], device=job.device)
    return job, plan, model, {"plan": planned - started, "load": time.perf_counter() - planned}


def peak_of(arguments: argparse.Namespace, role: str) -> float:
    command = [sys.executable, "-m", "benchmarks.dump_overhead", "--role", role, "--teacher", str(arguments.teacher)]
    command += ["--characters", str(arguments.characters)]
    command += ["--max-length", str(arguments.max_length), "--batch-tokens", str(arguments.batch_tokens)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPO)
    return float(done.stdout)


def run_role(arguments: argparse.Namespace) -> None:
    """In a process of its own: do one thing once, and print the peak of resident memory in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        job, plan, model, _ = prepare(arguments, Path(scratch))
        if arguments.role == "bare":
            bare_pass(model, plan, job)
        else:
            full_dump(engine_of(model, job), plan, job, Path(scratch) / "out")
    print(peak_mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=TEACHER)
    parser.add_argument("--characters", type=int, default=20_000, help="of text; about 4.7 make a token")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--role", choices=["bare", "dump"])
    arguments = parser.parse_args()
    if arguments.role:
        run_role(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        job, plan, model, seconds = prepare(arguments, Path(scratch))
        engine = engine_of(model, job)
        bare_pass(model, plan, job)  # warm
        pairs = []
        for repeat in range(arguments.repeats):
            # Each goes first every other time, so that a drift of the machine helps neither.
            calls = {
                "bare": lambda: bare_pass(model, plan, job),
                "dump": partial(full_dump, engine, plan, job, Path(scratch) / f"out-{repeat}"),
            }
            order = sorted(calls, reverse=bool(repeat % 2))
            pairs.append({name: timed(calls[name]) for name in order})
            print(f"repeat {repeat}: {pairs[-1]}", file=sys.stderr)
    ratios = [pair["dump"].wall / pair["bare"].wall for pair in pairs]
    memory = {role: peak_of(arguments, role) for role in ("bare", "dump")}
    result = {
        "tokens": plan.tokens,
        "shards": len(plan),
        "threads": torch.get_num_threads(),
        "bare_tokens_per_second": plan.tokens / statistics.median(pair["bare"].wall for pair in pairs),
        "time_ratio_median": statistics.median(ratios),
        "time_ratios": ratios,
        "time_ratio_of_sums": sum(pair["dump"].wall for pair in pairs) / sum(pair["bare"].wall for pair in pairs),
        "cpu_ratio_of_sums": sum(pair["dump"].cpu for pair in pairs) / sum(pair["bare"].cpu for pair in pairs),
        "load_average": os.getloadavg()[0],
        "peak_mib": memory,
        "memory_ratio": memory["dump"] / memory["bare"],
        "seconds_once": seconds,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
