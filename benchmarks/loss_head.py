"""Output layer and loss, forward and backward: ours against an ordinary linear layer with cross-entropy.

    python -m benchmarks.loss_head

Both sides get their gradients for the hidden states and for the weight. Seconds are the best of several rounds, the
ways taking turns in one process. Memory is how far the resident set grows over what it was before, each way in a
process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

import logitcache as lc
from benchmarks._device import wait
from benchmarks._markdown import table
from benchmarks._memory import peak_mib, reset_peak, resident_mib

SHAPES = ((576, 49_152), (896, 151_936))
BASELINE = "linear + cross_entropy"
LIMITS = {"time": 0.42, "memory": 0.25}


class Setup:
    """Random hidden states, a weight, and targets whose ids overlap with what the student prefers."""

    def __init__(
        self,
        width: int,
        vocab: int,
        tokens: int,
        top_k: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = device or torch.device("cpu")
        generator = torch.Generator(device).manual_seed(0)
        kind = {"generator": generator, "device": device, "dtype": dtype}
        self.hidden = torch.randn(tokens, width, **kind).requires_grad_()  # type: ignore[call-overload]
        self.weight = (torch.randn(vocab, width, **kind) / width**0.5 * 3).requires_grad_()  # type: ignore[call-overload]
        self.labels = torch.randint(0, vocab, (tokens,), generator=generator, device=device)
        with torch.no_grad():
            rows = [self._targets(part, top_k, generator) for part in self.hidden.split(64)]
        self.targets = lc.TopK.cat(rows)

    def _targets(self, hidden_ND: Tensor, top_k: int, generator: torch.Generator) -> lc.TopK:
        logits_NV = hidden_ND @ self.weight.T
        noise_NV = torch.randn(logits_NV.shape, generator=generator, device=logits_NV.device)
        return lc.TopK.from_logits(logits_NV + noise_NV / 2, top_k)

    def run(self, way: str) -> None:
        self.hidden.grad = self.weight.grad = None
        if way == BASELINE:
            loss = functional.cross_entropy(functional.linear(self.hidden, self.weight), self.labels)
        else:
            loss = lc.losses.linear_loss(way, self.hidden, self.weight, self.targets, labels=self.labels)
        loss.backward()


def seconds(setup: Setup, ways: list[str], rounds: int) -> dict[str, list[float]]:
    """Wall times, the ways taking turns so that a busy machine troubles all alike."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(rounds + 1):
        for way in ways:
            wait()
            start = time.perf_counter()
            setup.run(way)
            wait()
            if round_number:  # the first round warms up
                times[way].append(time.perf_counter() - start)
    return times


def growth_mib(action: Callable[[], None]) -> float:
    """How far the resident set grows above what it is now. Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the setup freed goes back, or it would hide what the step takes
    before = resident_mib()
    reset_peak()
    action()
    return peak_mib() - before


def memory_of(way: str, shape: tuple[int, int], options: argparse.Namespace) -> float:
    """The same in a new process, where no earlier step left memory to use again."""
    command = [sys.executable, "-m", "benchmarks.loss_head", "--memory-of", way, "--shape", *map(str, shape)]
    command += ["--tokens", str(options.tokens), "--top-k", str(options.top_k), "--threads", str(options.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--losses", nargs="*", default=["bild"], help="names, or mixes as --loss takes them")
    parser.add_argument("--shape", type=int, nargs=2, metavar=("WIDTH", "VOCAB"), help="this one only")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = [tuple(options.shape)] if options.shape else SHAPES
    if options.memory_of:
        setup = Setup(*shapes[0], options.tokens, options.top_k)
        print(growth_mib(lambda: setup.run(options.memory_of)))
        return 0

    rows, within = [], True
    for shape in shapes:
        ways = [BASELINE, *options.losses]
        times = seconds(Setup(*shape, options.tokens, options.top_k), ways, options.rounds)
        memory = {way: memory_of(way, shape, options) for way in ways}
        for way in ways:
            row = {
                "width": shape[0],
                "vocab": shape[1],
                "loss": way,
                "seconds": min(times[way]),
                "time": min(times[way]) / min(times[BASELINE]),
                "peak_mib": memory[way],
                "memory": memory[way] / memory[BASELINE],
            }
            rows.append(row)
            within &= way != "bild" or (row["time"] <= LIMITS["time"] and row["memory"] <= LIMITS["memory"])
    report(rows, options)
    return 0 if within else 1


def report(rows: list[dict[str, float]], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{options.tokens} tokens, top-{options.top_k}, float32, {options.threads} threads, best of {options.rounds}")
    cells = [
        [
            str(row["width"]),
            f"{row['vocab']:,}",
            str(row["loss"]),
            f"{row['seconds']:.2f}",
            f"{row['time']:.2f}x",
            f"{row['peak_mib']:,.0f}",
            f"{row['memory']:.2f}x",
        ]
        for row in rows
    ]
    print(table(["width", "vocabulary", "loss", "seconds", "time", "peak MiB", "memory"], cells))


if __name__ == "__main__":
    sys.exit(main())
