"""Training from a compact cache of 64 ids a position against the same training with the whole teacher in the loop.

    python -m benchmarks.offline_online --teacher .models/SmolLM2-135M-Instruct

The student is the demo's, ten of the teacher's layers, or has those of `--layers`. Both runs of a pair see the same
tokens in the same order, with the same optimizer. Online, BiLD reads the teacher's own values for both halves, and the
KL goes over the whole vocabulary. Offline, s-LD's missing values are filled in, and the KL is `residual_kl`, in which
all ids outside the 64 are one event, or `forward_kl` from a cache of 48 ids and 16 drawn from the rest. The students
are then measured by the whole KL on held-out text. Exits with 1 if training from a sample of the tail ends 2 % off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from benchmarks.train_step import exact_bild
from logitcache.student import make_student

DATA = Path(__file__).parents[1] / "examples" / "data"
TRAIN, HELD_OUT = DATA / "train" / "*.txt", DATA / "heldout" / "1964_lyndon_b_johnson.txt"
LENGTH, BATCH, LIMIT = 128, 4, 0.02
TOP_K, TAIL_SAMPLES = 64, 16
LAYERS = (*range(7), 27, 28, 29)
#: Name of a loss's part to its weight.
Parts = dict[str, float]
LOSSES: dict[str, Parts] = {
    "bild+forward_kl": {"bild": 1.0, "forward_kl": 1.0},
    "bild+residual_kl": {"bild": 1.0, "residual_kl": 1.0},  # what the demo trains with
    "bild": {"bild": 1.0},
    "forward_kl": {"forward_kl": 1.0},
    "residual_kl": {"residual_kl": 1.0},
}


def whole_kl(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """``[N]`` nats."""
    teacher, student = teacher_NV.log_softmax(1), student_NV.log_softmax(1)
    return (teacher.exp() * (teacher - student)).sum(1)


@torch.no_grad()
def held_out_kl(teacher: Any, student: Any, tokenizer: Any, tokens: int) -> float:
    """Mean over ``tokens`` of held-out text, in nats."""
    ids = torch.tensor(tokenizer(HELD_OUT.read_text(encoding="utf-8"))["input_ids"][:tokens])
    student.eval()
    values = [
        whole_kl(teacher(input_ids=part[None]).logits[0], student(input_ids=part[None]).logits[0])
        for part in ids.split(LENGTH)
    ]
    student.train()
    return float(torch.cat(values).mean())


def train(student: Any, batches: list[lc.Batch], loss: Callable[[lc.Batch], Tensor]) -> None:
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=1e-4)
    for batch in batches:
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def online(teacher: Any, student: Any, parts: Parts) -> Callable[[lc.Batch], Tensor]:
    exact = {"bild": lambda teacher_NV, student_NV: exact_bild(student_NV, teacher_NV)}

    def loss(batch: lc.Batch) -> Tensor:
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        with torch.no_grad():
            teacher_NV = teacher(**inputs).logits.flatten(0, 1)[batch.target_index]
        student_NV = student(**inputs).logits.flatten(0, 1)[batch.target_index]
        values = [weight * exact.get(name, whole_kl)(teacher_NV, student_NV).mean() for name, weight in parts.items()]
        return torch.stack(values).sum()

    return loss


def offline(student: Any, parts: Parts) -> Callable[[lc.Batch], Tensor]:
    model = lc.losses.loss_model(student)
    function = lc.losses.parse(",".join(f"{name}={weight}" for name, weight in parts.items()))
    return lambda batch: model.loss(
        function, batch.input_ids, batch.target_index, batch.targets, batch.labels, position_ids=batch.position_ids
    )[0]


def bytes_per_target(cache: lc.Cache) -> float:
    totals = cache.manifest.totals
    return round(totals.bytes / totals.targets, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("LOGITCACHE_TEACHER", ".models/SmolLM2-135M-Instruct")
    parser.add_argument("--teacher", type=Path, default=Path(default), help="see examples/get_teacher.py")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--losses", nargs="*", choices=list(LOSSES), default=list(LOSSES)[:3])
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS, help="of the teacher, that the student keeps")
    parser.add_argument("--held-out-tokens", type=int, default=2048)
    options = parser.parse_args()
    if not options.teacher.exists():
        print(f"no teacher at {options.teacher}: run examples/get_teacher.py, or give --teacher", file=sys.stderr)
        return 1
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    teacher = AutoModelForCausalLM.from_pretrained(options.teacher, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_student(options.teacher, place / "student", layers=options.layers)
        caches = {}
        for samples in (0, TAIL_SAMPLES):
            settings = {"teacher": str(options.teacher), "data": [str(TRAIN)], "top_k": TOP_K, "max_length": LENGTH}
            caches[samples] = lc.dump(out=place / f"cache{samples}", tail_samples=samples, **settings)

        def kl_after(way: str, parts: Parts) -> float:
            student = AutoModelForCausalLM.from_pretrained(place / "student", dtype=torch.float32).train()
            cache = caches[TAIL_SAMPLES if "forward_kl" in parts else 0]
            batches = list(islice(lc.stream(cache, batch_size=BATCH, epochs=None), options.steps))
            if way == "online":
                train(student, batches, online(teacher, student, parts))
            elif way == "offline":
                train(student, batches, offline(student, parts))
            return held_out_kl(teacher, student, tokenizer, options.held_out_tokens)

        results: dict[str, Any] = {
            "steps": options.steps,
            "before": kl_after("before", {}),
            "bytes_per_target": {f"{samples} drawn": bytes_per_target(cache) for samples, cache in caches.items()},
            "losses": {},
        }
        for name in options.losses:
            found = {way: kl_after(way, LOSSES[name]) for way in ("online", "offline")}
            results["losses"][name] = {**found, "ratio": round(found["offline"] / found["online"], 4)}
            print(name, results["losses"][name], file=sys.stderr)
    print(json.dumps(results, indent=2))
    sampled = [found["ratio"] for name, found in results["losses"].items() if "forward_kl" in name]
    return 0 if all(abs(ratio - 1) < LIMIT for ratio in sampled) else 1


if __name__ == "__main__":
    sys.exit(main())
