"""Training from a compact cache of 64 ids a position against the same training with the whole teacher in the loop.

    python -m benchmarks.offline_online --student near
    python -m benchmarks.offline_online --markdown benchmarks/results/offline_online.md

The student `near` lacks two of the teacher's layers, which puts it 0.57 nats away on its text; `demo` has ten of them.
Both trainings of a pair see the same tokens in the same order, with the same optimizer. Online, BiLD reads the
teacher's own values for both halves, and the KL goes over the whole vocabulary. Offline, s-LD's missing values are
filled in, and the KL has the ids that aren't listed as one event. Three caches are tried: the top 64; the top 48 and 16
ids that the student likes at the start; the top 40 and 24 ids drawn from the rest, where the KL is that of the sample.
With audit rows, every 60th position of the same text with every id, what stands for missing values is chosen as
`logitcache train --audit` does it. The students are then measured by the whole KL on held-out text, once for each of
`--seeds`, which order the samples. With `--markdown` every line of `LINES` is measured instead of `--runs`. Exits with
1 if the near student with BiLD and drawn ids ends 2 % or more off on average.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitcache as lc
from benchmarks._markdown import table, write_tables
from benchmarks._teacher import DATA, load, parse, teacher_parser
from benchmarks.train_step import exact_bild
from logitcache.students.cut import make_student
from logitcache.train.audit import Audit

TRAIN, HELD_OUT = DATA / "train" / "*.txt", DATA / "heldout" / "1964_lyndon_b_johnson.txt"
LENGTH, TOP_K, LIMIT = 128, 64, 0.02
#: Layers of the teacher that a student keeps.
STUDENTS = {
    "near": tuple(layer for layer in range(30) if layer not in (10, 20)),
    "demo": (*range(7), 27, 28, 29),
}
#: Names of losses that are added up.
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A loss, what its cache holds beyond the top, and whether audit rows choose s-LD's fill."""

    parts: Parts
    candidates: int = 0
    tail_samples: int = 0
    audit: bool = False

    @property
    def loss(self) -> str:
        """As ``--loss`` takes it."""
        return self.parts[0] if len(self.parts) == 1 else ",".join(f"{name}=1.0" for name in self.parts)

    @property
    def entries(self) -> str:
        """What the K entries of a position are."""
        others = {"drawn": self.tail_samples, "candidates": self.candidates}
        cells = [f"top {TOP_K - sum(others.values())}", *(f"{count} {name}" for name, count in others.items() if count)]
        return ", ".join(cells + ["fill chosen on audit rows"] * self.audit)


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


@dataclass(frozen=True)
class Line:
    """A line of the table: a run, which student, rows a step, and seeds of the order of samples."""

    run: str
    student: str = "near"
    batch: int = 4
    seeds: tuple[int, ...] = (0,)


LINES = (
    Line(RECOMMENDED),
    Line("forward_kl, 24 drawn"),
    Line(RECOMMENDED, "demo"),
    Line(RECOMMENDED, "demo", 16),
    Line("bild + residual_kl"),
    Line("bild + residual_kl", "demo"),
    Line("bild + residual_kl, 16 candidates", "demo"),
    Line("bild", "demo", seeds=(0, 1, 2)),
    Line("bild, audit rows", "demo", seeds=(0, 1, 2)),
    Line("bild, 16 candidates", "demo", seeds=(0, 1, 2)),
)


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
    function = lc.losses.parse(Run(parts).loss)
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
    """A teacher, its students, and the caches dumped so far."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self._options, self._place = options, place
        self._teacher, self._tokenizer = load(options.teacher)
        self._caches: dict[str, lc.Cache] = {}
        self._measured: dict[tuple[Any, ...], float] = {}

    def pair(self, line: Line) -> dict[str, Any]:
        """Final KL of both ways by seed, before that the student's own, and the size of the cache."""
        run = RUNS[line.run]
        totals = self._cache(run, line.student).manifest.totals
        # All caches hold the same text, but each has an order of its own: online training follows it, too.
        with_teacher, from_cache = (
            [self._kl_after(run, line, seed, is_online=is_online) for seed in line.seeds] for is_online in (True, False)
        )
        return {
            **asdict(line),
            "bytes": round(totals.bytes / totals.targets, 1),
            "before": self._kl_before(line.student),
            "online": with_teacher,
            "offline": from_cache,
            "ratio": round(sum(from_cache) / sum(with_teacher), 4),
        }

    def _kl_before(self, student: str) -> float:
        key = (student,)
        if key not in self._measured:
            self._measured[key] = self._kl(self._student(student))
        return self._measured[key]

    def _kl_after(self, run: Run, line: Line, seed: int, *, is_online: bool) -> float:
        """Nats on held-out text. A student that learnt online before isn't trained again."""
        if is_online:
            run = replace(run, audit=False)  # With the teacher at hand nothing is missing.
        key = (run, line.student, line.batch, seed, is_online)
        if key not in self._measured:
            student, cache = self._student(line.student), self._cache(run, line.student)
            samples = lc.stream(cache, batch_size=line.batch, epochs=None, seed=seed)
            batches = list(islice(samples, self._options.steps))
            audit = self._audit(cache) if run.audit else None
            loss = online(self._teacher, student, run.parts) if is_online else offline(student, run.parts, audit)
            train(student, batches, loss)
            self._measured[key] = self._kl(student)
        return self._measured[key]

    def _kl(self, student: Any) -> float:
        return round(held_out_kl(self._teacher, student, self._tokenizer, self._options.held_out_tokens), 4)

    def _student(self, name: str) -> Any:
        return load(self._student_place(name))[0].train()

    def _student_place(self, name: str) -> Path:
        place = self._place / name
        if not place.exists():
            make_student(self._options.teacher, place, layers=STUDENTS[name])
        return place

    def _cache(self, run: Run, student: str) -> lc.Cache:
        settings: dict[str, Any] = {"reference": str(self._student_place(student))} if run.candidates else {}
        return self._dumped(top_k=TOP_K, candidates=run.candidates, tail_samples=run.tail_samples, **settings)

    def _audit(self, cache: lc.Cache) -> Audit:
        rows = self._dumped(top_k="all", every=60, preset="half")
        return Audit(rows, (cache,), rows.vocab_size)

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


def results_table(results: list[dict[str, Any]]) -> str:
    """A row a line; where there are several seeds, a figure for each."""
    header = ["loss", "K = 64 entries", "bytes a token", "student", "tokens a step", "online", "offline", "ratio"]
    rows = []
    for result in results:
        run = RUNS[result["run"]]
        figures = [", ".join(f"{kl:.3f}" for kl in result[way]) for way in ("online", "offline")]
        cells = [f"`{run.loss}`", run.entries, str(result["bytes"]), result["student"]]
        rows.append([*cells, f"{result['batch'] * LENGTH:,}", *figures, f"{result['ratio']:.3f}"])
    return table(header, rows)


def main() -> int:
    parser = teacher_parser(__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4, help="sequences of 128 tokens a step")
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=[RECOMMENDED, "bild + residual_kl"])
    parser.add_argument("--student", choices=list(STUDENTS), default="near")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the order of samples")
    parser.add_argument("--held-out-tokens", type=int, default=2048)
    parser.add_argument("--markdown", type=Path, help="measure all lines of the table, and write it there")
    options = parse(parser)
    lines = [Line(name, options.student, options.batch, tuple(options.seeds)) for name in options.runs]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(options, Path(folder))
        for line in LINES if options.markdown else lines:
            results.append(comparison.pair(line))
            print(results[-1], file=sys.stderr)
    print(json.dumps({"steps": options.steps, "runs": results}, indent=2))
    if options.markdown:
        write_tables(options.markdown, [results_table(results)])
    held = [found["ratio"] for found in results if (found["run"], found["student"]) == (RECOMMENDED, "near")]
    return 0 if all(abs(ratio - 1) < LIMIT for ratio in held) else 1


if __name__ == "__main__":
    sys.exit(main())
