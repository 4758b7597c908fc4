"""How far the default fill of s-LD can be relied on: many students, and the gradient of a student's weights.

    python -m benchmarks.sld_students --plot docs/sld_students.png

Students are the teacher without 1 to 5 layers drawn at random (never the first two or the last). For each the s-LD
gradient from a cache of K = 64 is compared with the exact one in three ways: with respect to the logits, token by token
and averaged; the same over all tokens together; and with respect to all weights of the student, which is what a step of
training takes. Errors of single tokens point in many directions and mostly cancel in the last one. Over all tokens the
fill b − 1 is measured too, and the completion, learnt from 256 audit rows of other text.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from benchmarks._teacher import parse, teacher_parser
from benchmarks.sld_fidelity import AUDITED, CONTEXT, DATA, MEASURED, exact_gradient, hidden_states, s_ld, without
from logitcache.losses.bild import SLD
from logitcache.losses.fidelity import GradientMatch, compare, gradient

K, AUDIT_ROWS = 64, 256
BINS = ((0.1, 0.3), (0.3, 0.5), (0.5, 0.8), (0.8, 1.2), (1.2, 1.8), (1.8, 2.5))


@dataclass(frozen=True)
class Result:
    """One student: its distance in nats, and the cosines of the default fill; over all logits also those of others."""

    dropped: tuple[int, ...]
    kl: float
    coverage: float
    per_token: float
    logits: float
    weights: float
    simple: float
    completed: float


def draw_students(count: int, seed: int, layers: int) -> list[tuple[int, ...]]:
    """As many with one layer less as with two, and so on up to five."""
    drawn, students = random.Random(seed), set[tuple[int, ...]]()
    while len(students) < count:
        students.add(tuple(sorted(drawn.sample(range(2, layers - 1), len(students) % 5 + 1))))
    return sorted(students, key=lambda dropped: (len(dropped), dropped))


class Weights:
    """Sums of two gradients over the contexts, and their cosine."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.ours = [torch.zeros_like(parameter) for parameter in parameters]
        self.exact = [torch.zeros_like(parameter) for parameter in parameters]

    def add(self, logits_NV: Tensor, ids_Nk: Tensor, ours_Nk: Tensor, exact_Nk: Tensor) -> None:
        for sums, gradient_Nk, keep in ((self.ours, ours_Nk, True), (self.exact, exact_Nk, False)):
            gradient_NV = torch.zeros_like(logits_NV).scatter_(1, ids_Nk, gradient_Nk)
            found = torch.autograd.grad(logits_NV, self.parameters, gradient_NV, retain_graph=keep)
            torch._foreach_add_(sums, list(found))

    @property
    def cosine(self) -> float:
        def product(first: list[Tensor], second: list[Tensor]) -> float:
            return sum(float((a.double() * b).sum()) for a, b in zip(first, second, strict=True))

        return product(self.ours, self.exact) / (product(self.ours, self.ours) * product(self.exact, self.exact)) ** 0.5


def measure(
    model: Any, dropped: tuple[int, ...], contexts: list[Tensor], teacher: list[Tensor], fills: dict[str, SLD]
) -> Result:
    """One student. ``contexts`` hold ids ``[1, T]``, ``teacher`` the log-probs ``[T - 1, V]`` after each first one."""
    tallies, coverage, distance = dict.fromkeys(fills, GradientMatch()), 0.0, 0.0
    with without(model, dropped):
        weights = Weights(list(model.parameters()))
        for ids, teacher_NV in zip(contexts, teacher, strict=True):
            logits_NV = model(input_ids=ids, use_cache=False).logits[0, 1:]
            student_NV, targets = logits_NV.detach(), lc.TopK.from_logits(teacher_NV, K)
            distance += float((teacher_NV.exp() * (teacher_NV - student_NV.log_softmax(1))).sum())
            coverage += float(lc.losses.metrics.s_ld_coverage(student_NV, targets).sum())
            exact_Nk = exact_gradient(student_NV, teacher_NV)
            found = {name: gradient(loss, student_NV, targets) for name, loss in fills.items()}
            for name, gradient_Nk in found.items():
                tallies[name] = tallies[name].plus(compare(gradient_Nk, exact_Nk))
            weights.add(logits_NV, student_NV.topk(exact_Nk.shape[1], dim=1).indices, found["default"], exact_Nk)
    default = tallies["default"]
    return Result(
        dropped,
        kl=distance / default.rows,
        coverage=coverage / default.rows,
        per_token=default.mean_cosine,
        logits=default.cosine,
        weights=weights.cosine,
        simple=tallies["simple"].cosine,
        completed=tallies["completed"].cosine,
    )


def learn(model: Any, tokenizer: Any, rows: int) -> lc.losses.Completion:
    """The completion from so many audit rows."""
    states_AD = hidden_states(model, tokenizer, AUDITED, 3 * CONTEXT)
    with torch.no_grad():
        return lc.losses.Completion.fit([model.lm_head(states_AD[:: len(states_AD) // rows][:rows])])


def run(options: argparse.Namespace) -> list[Result]:
    model = AutoModelForCausalLM.from_pretrained(options.teacher, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    texts = [(DATA / name).read_text(encoding="utf-8") for name in MEASURED]
    contexts = [torch.tensor(tokenizer(text)["input_ids"][:CONTEXT])[None] for text in texts]
    with torch.no_grad():
        teacher = [model(input_ids=ids, use_cache=False).logits[0, 1:].log_softmax(1) for ids in contexts]
    completion = learn(model, tokenizer, AUDIT_ROWS)
    fills = {"default": s_ld(), "simple": s_ld(offset=1, slope=0), "completed": s_ld(completion=completion)}
    results = []
    for dropped in draw_students(options.students, options.seed, model.config.num_hidden_layers):
        results.append(measure(model, dropped, contexts, teacher, fills))
        print(f"without layers {dropped}: {json.dumps(asdict(results[-1]))}", file=sys.stderr)
    return sorted(results, key=lambda result: result.kl)


def report(results: list[Result]) -> None:
    """Median and worst of each measure by distance."""
    columns = ("students", "coverage", "all tokens: b − 1", "default", "completion", "each token", "the weights")
    print("| nats to the teacher | " + " | ".join(columns) + " |")
    print("|---" * 8 + "|")
    for low, high in BINS:
        near = [result for result in results if low <= result.kl < high]
        if not near:
            continue
        cells = [f"{statistics.median(result.coverage for result in near):.3f}"]
        for name in ("simple", "logits", "completed", "per_token", "weights"):
            values = [getattr(result, name) for result in near]
            cells.append(f"{statistics.median(values):.3f} ({min(values):.3f})")
        middle = statistics.median(result.kl for result in near)
        print(f"| {low} to {high}, median {middle:.2f} | {len(near)} | " + " | ".join(cells) + " |")


def plot(results: list[Result], path: Path) -> None:
    from matplotlib import pyplot  # the extra `plot`

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    names = {"weights": "of the student's weights", "per_token": "of the logits, each token", "logits": "all tokens"}
    for (name, label), marker in zip(names.items(), "osx", strict=True):
        axis.scatter([r.kl for r in results], [getattr(r, name) for r in results], marker=marker, label=label, s=20)
    axis.set(xlim=(0, BINS[-1][1]), ylim=(0.84, 1.002))
    axis.set(xlabel="student's KL to the teacher, nats", ylabel="cosine with the exact s-LD gradient")
    axis.legend(loc="lower left", fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = teacher_parser(__doc__)
    parser.add_argument("--students", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="write a picture there")
    parser.add_argument("--json", action="store_true")
    options = parse(parser)
    results = run(options)
    print(json.dumps([asdict(result) for result in results], indent=2)) if options.json else report(results)
    if options.plot:
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
