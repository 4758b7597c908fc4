"""A whole training step, AdamW included: BiLD from a cache against plain fine-tuning and against online distillation.

    python -m benchmarks.train_step --teacher .models/SmolLM2-135M-Instruct

The student has the teacher's width and ten of its layers. A step: one row of tokens, forward, backward, clip, AdamW.
Fine-tuning is the model's own loss on the same tokens; online distillation runs the 30-layer teacher without gradient
beside the student and takes the exact BiLD of all logits. The ways take turns in one process; the best round counts.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import logitcache as lc
from benchmarks._device import wait
from benchmarks._teacher import DATA, load, parse, teacher_parser
from logitcache import losses
from logitcache.stream import Batch

LIMITS = {"fine-tuning": 0.78, "online": 0.46}
OURS = "bild from a cache"


def tokens_from(tokenizer: Any, count: int) -> Tensor:
    """``[1, count]`` tokens of real text."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DATA / "train").glob("*.txt")))
    return torch.tensor(tokenizer(text)["input_ids"][:count])[None]


def cut_student(teacher: Any, layers: int) -> Any:
    """The teacher with ``layers`` of its layers at even distances."""
    student = copy.deepcopy(teacher)
    stack, total = student.model.layers, len(student.model.layers)
    kept = [round(index * (total - 1) / (layers - 1)) for index in range(layers)]
    student.model.layers = torch.nn.ModuleList(stack[index] for index in kept)
    student.config.num_hidden_layers = layers
    return student.train()


def ways(teacher: Any, student: Any, input_ids_1L: Tensor, top_k: int) -> dict[str, Callable[[], Tensor]]:
    """Each way to get the loss of one step."""
    with torch.no_grad():
        logits_LV = teacher(input_ids=input_ids_1L, use_cache=False).logits[0, :-1]
        targets = lc.TopK.from_logits(logits_LV, top_k)
    del logits_LV
    labels = input_ids_1L[0, 1:]
    positions_L = torch.arange(len(labels) + 1, device=labels.device)
    batch = Batch(input_ids_1L, positions_L[None], positions_L[:-1], targets, labels)
    model = losses.loss_model(student, "bild")
    assert model.fused, model.why_dense

    def online() -> Tensor:
        with torch.no_grad():
            teacher_LV = teacher(input_ids=input_ids_1L, use_cache=False).logits[0, :-1]
        student_LV = student(input_ids=input_ids_1L, use_cache=False).logits[0, :-1]
        return exact_bild(student_LV, teacher_LV).mean()

    return {
        "fine-tuning": lambda: student(input_ids=input_ids_1L, labels=input_ids_1L, use_cache=False).loss,
        "online": online,
        OURS: lambda: model(batch)[0],
    }


def exact_bild(student_LV: Tensor, teacher_LV: Tensor, k: int = 8, temperature: float = 3.0) -> Tensor:
    """BiLD as the paper's code computes it, both models' logits at hand."""
    first, second = torch.triu_indices(k, k, 1)

    def half(ids_Lk: Tensor) -> Tensor:
        student, teacher = student_LV.gather(1, ids_Lk) / temperature, teacher_LV.gather(1, ids_Lk) / temperature
        p = (teacher[:, first] - teacher[:, second]).log_softmax(1)
        q = (student[:, first] - student[:, second]).log_softmax(1)
        return (p.exp() * (p - q)).sum(1)

    return half(teacher_LV.topk(k, dim=1).indices) + half(student_LV.topk(k, dim=1).indices)


def measure(steps: dict[str, Callable[[], Tensor]], student: Any, rounds: int) -> dict[str, list[float]]:
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=1e-4)
    times: dict[str, list[float]] = {way: [] for way in steps}
    for round_number in range(rounds + 1):
        for way, loss in steps.items():
            wait()
            start = time.perf_counter()
            loss().backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            wait()
            if round_number:  # the first round warms up
                times[way].append(time.perf_counter() - start)
    return times


def main() -> int:
    parser = teacher_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parse(parser)
    teacher, tokenizer = load(options.teacher)
    student = cut_student(teacher, options.layers)
    steps = ways(teacher, student, tokens_from(tokenizer, options.tokens), options.top_k)
    times = measure(steps, student, options.rounds)
    ratio = {way: min(times[OURS]) / min(times[way]) for way in LIMITS}
    if options.json:
        print(json.dumps({"seconds": {way: min(found) for way, found in times.items()}, "ratio": ratio}))
    else:
        print(f"{options.tokens} tokens, {options.layers} layers, float32, {options.threads} threads, AdamW included")
        for way, found in times.items():
            print(f"  {way:18} {min(found):6.2f} s")
        for way, value in ratio.items():
            print(f"{OURS} takes {value:.2f}x of {way} (limit {LIMITS[way]}x)")
    return 0 if all(value <= LIMITS[way] for way, value in ratio.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
