"""Training from a compact cache of 64 ids a position against the same training with the whole teacher in the loop.

    python -m benchmarks.offline_online --teacher .models/SmolLM2-135M-Instruct

The student lacks two of the teacher's layers, which puts it 0.57 nats away on its text, or has those of `--layers`.
Both trainings of a pair see the same tokens in the same order, with the same optimizer. Online, BiLD reads the
teacher's own values for both halves, and the KL goes over the whole vocabulary. Offline, s-LD's missing values are
filled in, and the KL has the ids that aren't listed as one event. Three caches are tried: the top 64; the top 48 and 16
ids that the student likes at the start; the top 40 and 24 ids drawn from the rest, where the KL is that of the sample.
With audit rows, every 60th position of the same text with every id, what stands for missing values is chosen as
`logitcache train --audit` does it. The students are then measured by the whole KL on held-out text, once for each of
`--seeds`, which order the samples. Exits with 1 if the run with BiLD and drawn ids ends 2 % or more off on average.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from benchmarks._teacher import parse, teacher_parser
from benchmarks.train_step import exact_bild
from logitcache.students.cut import make_student
from logitcache.train.audit import Audit

DATA = Path(__file__).parents[1] / "examples" / "data"
TRAIN, HELD_OUT = DATA / "train" / "*.txt", DATA / "heldout" / "1964_lyndon_b_johnson.txt"
LENGTH, TOP_K, LIMIT = 128, 64, 0.02
LAYERS = tuple(layer for layer in range(30) if layer not in (10, 20))
#: Names of losses that are added up.
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A loss, what its cache holds beyond the top, and whether audit rows choose s-LD's fill."""

    parts: Parts
    candidates: int = 0
    tail_samples: int = 0
    audit: bool = False


RUNS = {
    "bild, 16 candidates": Run(("bild",), candidates=16),
    "bild + residual_kl, 16 candidates": Run(("bild", "residual_kl"), candidates=16),
    "bild + forward_kl, 24 drawn": Run(("bild", "forward_kl"), tail_samples=24),
    "bild": Run(("bild",)),
    "bild, audit rows": Run(("bild",), audit=True),
    "bild + residual_kl": Run(("bild", "residual_kl")),
    "forward_kl, 24 drawn": Run(("forward_kl",), tail_samples=24),
    "residual_kl": Run(("residual_kl",)),
}
RECOMMENDED = "bild + forward_kl, 24 drawn"


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
        with torch.no_grad():
            teacher_NV = logits_at(teacher, batch)
        student_NV = logits_at(student, batch)
        return torch.stack([exact.get(name, whole_kl)(teacher_NV, student_NV).mean() for name in parts]).sum()

    return loss


def offline(student: Any, parts: Parts, audit: Audit | None) -> Callable[[lc.Batch], Tensor]:
    function = lc.losses.parse(",".join(f"{name}=1.0" for name in parts))
    if audit is not None:
        with torch.no_grad():
            function, _ = audit.choose(function, partial(logits_at, student))
    model = lc.losses.loss_model(student, function)
    return lambda batch: model(batch)[0]


def logits_at(model: Any, batch: lc.Batch) -> Tensor:
    """``[N, V]`` at the positions that have targets."""
    logits: Tensor = model(input_ids=batch.input_ids, position_ids=batch.position_ids).logits
    return logits.flatten(0, 1)[batch.target_index]


class Comparison:
    """One student and teacher, and the caches dumped so far."""

    def __init__(self, options: argparse.Namespace, place: Path, teacher: Any, tokenizer: Any) -> None:
        self._options, self._place, self._teacher, self._tokenizer = options, place, teacher, tokenizer
        self._caches: dict[str, lc.Cache] = {}
        self._measured: dict[tuple[Run | None, int, bool], float] = {}

    def pair(self, run: Run) -> dict[str, Any]:
        """Final KL of both ways by seed, and the size of the cache."""
        totals = self._cache(run).manifest.totals
        # All caches hold the same text, but each has an order of its own: online training follows it, too.
        with_teacher, from_cache = (
            [self.kl_after(run, seed, is_online=is_online) for seed in self._options.seeds]
            for is_online in (True, False)
        )
        size = round(totals.bytes / totals.targets, 1)
        ratio = round(sum(from_cache) / sum(with_teacher), 4)
        return {"online": with_teacher, "offline": from_cache, "ratio": ratio, "bytes": size}

    def kl_after(self, run: Run | None, seed: int = 0, *, is_online: bool = False) -> float:
        """Nats on held-out text; None trains nothing. A student that learnt online before isn't trained again."""
        if run is not None and is_online:
            run = replace(run, audit=False)  # With the teacher at hand nothing is missing.
        key = (run, seed, is_online)
        if key not in self._measured:
            student = AutoModelForCausalLM.from_pretrained(self._place / "student", dtype=torch.float32).train()
            if run is not None:
                samples = lc.stream(self._cache(run), batch_size=self._options.batch, epochs=None, seed=seed)
                batches = list(islice(samples, self._options.steps))
                audit = self._audit(run) if run.audit else None
                loss = online(self._teacher, student, run.parts) if is_online else offline(student, run.parts, audit)
                train(student, batches, loss)
            kl = held_out_kl(self._teacher, student, self._tokenizer, self._options.held_out_tokens)
            self._measured[key] = round(kl, 4)
        return self._measured[key]

    def _cache(self, run: Run) -> lc.Cache:
        settings: dict[str, Any] = {"reference": str(self._place / "student")} if run.candidates else {}
        return self._dumped(top_k=TOP_K, candidates=run.candidates, tail_samples=run.tail_samples, **settings)

    def _audit(self, run: Run) -> Audit:
        rows = self._dumped(top_k="all", every=60, preset="half")
        return Audit(rows, (self._cache(run),), rows.vocab_size)

    def _dumped(self, **settings: Any) -> lc.Cache:
        key = json.dumps(settings)
        if key not in self._caches:
            self._caches[key] = lc.dump(
                teacher=str(self._options.teacher),
                data=[str(TRAIN)],
                out=self._place / f"cache{len(self._caches)}",
                max_length=LENGTH,
                **settings,
            )
        return self._caches[key]


def main() -> int:
    parser = teacher_parser(__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4, help="sequences of 128 tokens a step")
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=[RECOMMENDED, "bild + residual_kl"])
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS, help="of the teacher, that the student keeps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the order of samples")
    parser.add_argument("--held-out-tokens", type=int, default=2048)
    options = parse(parser)
    teacher = AutoModelForCausalLM.from_pretrained(options.teacher, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_student(options.teacher, place / "student", layers=options.layers)
        comparison = Comparison(options, place, teacher, AutoTokenizer.from_pretrained(options.teacher))
        results: dict[str, Any] = {"steps": options.steps, "before": comparison.kl_after(None), "runs": {}}
        for name in options.runs:
            results["runs"][name] = comparison.pair(RUNS[name])
            print(name, results["runs"][name], file=sys.stderr)
    print(json.dumps(results, indent=2))
    found = results["runs"].get(RECOMMENDED)
    return 0 if found is None or abs(found["ratio"] - 1) < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
