"""How far the default fill of s-LD can be relied on: many students, two kinds of text, and the step that is taken.

    python -m benchmarks.sld_students --weights --markdown benchmarks/results/sld_students.md \\
        --plot benchmarks/results/sld_students.png
    python -m benchmarks.sld_students --pruned 1 2 4 5 6 7 8 12 --markdown benchmarks/results/sld_pruned.md

Students are the teacher without 1 to 5 layers drawn at random (never the first two or the last), or pruned layer by
layer, each time of the one that costs least on other text. Texts are three addresses, and three chapters of the
language reference that comes with Python. For each student the s-LD gradient from a cache of K = 64 is compared with
the exact one: with respect to the logits, token by token and averaged; the same over all tokens together; and, with
``--weights`` and on the addresses (which then take four times as long), with respect to all weights of the student,
which is what a step of training takes: errors of single tokens point in many directions and mostly cancel there. Over
all tokens the fill b − 1 and the estimator, learnt from 256 audit rows of other text, are measured too, and BiLD as a
whole, of which s-LD is one half and the other half is exact.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

import logitcache as lc
from benchmarks._markdown import table, write_tables
from benchmarks._students import Dropped, drawn, pruned, without
from benchmarks._teacher import DATA, load, parse, teacher_parser
from benchmarks.sld_fidelity import AUDITED, CONTEXT, MEASURED, exact_gradient, hidden_states, s_ld
from logitcache import losses
from logitcache.losses.bild import SLD
from logitcache.losses.fidelity import GradientMatch, compare, gradient

K, AUDIT_ROWS, PRUNING_TOKENS = 64, 256, 160
CHAPTERS = ("compound", "specialnames", "types")
BINS = ((0.1, 0.3), (0.3, 0.5), (0.5, 0.8), (0.8, 1.2), (1.2, 1.8), (1.8, 2.5))
#: Columns of the tables: title, and which figure of a result.
COLUMNS = {
    "s-LD, all tokens: b − 1": "simple",
    "default": "logits",
    "estimator": "estimated",
    "BiLD, all tokens": "bild",
    "s-LD, each token": "per_token",
}
WEIGHTS = {"s-LD, the weights": "weights"}
#: The text whose gradient of the weights is measured.
WEIGHED = "addresses"


@dataclass(frozen=True)
class Text:
    """Contexts of token ids ``[1, T]``, and the teacher's log-probs ``[T - 1, V]`` after each first token."""

    contexts: list[Tensor]
    teacher: list[Tensor]


@dataclass(frozen=True)
class Result:
    """One student on one text: its distance in nats, and the cosines that ``COLUMNS`` names."""

    text: str
    dropped: Dropped
    kl: float
    coverage: float
    per_token: float
    logits: float
    bild: float
    simple: float
    estimated: float
    weights: float | None


class Weights:
    """Sums of two gradients over the contexts, and their cosine."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.ours = [torch.zeros_like(parameter) for parameter in parameters]
        self.exact = [torch.zeros_like(parameter) for parameter in parameters]

    def add(self, logits_NV: Tensor, ours_NV: Tensor, exact_NV: Tensor) -> None:
        for sums, gradient_NV, keep in ((self.ours, ours_NV, True), (self.exact, exact_NV, False)):
            found = torch.autograd.grad(logits_NV, self.parameters, gradient_NV, retain_graph=keep)
            torch._foreach_add_(sums, list(found))

    @property
    def cosine(self) -> float:
        def product(first: list[Tensor], second: list[Tensor]) -> float:
            return sum(float((a.double() * b).sum()) for a, b in zip(first, second, strict=True))

        return product(self.ours, self.exact) / (product(self.ours, self.ours) * product(self.exact, self.exact)) ** 0.5


def t_ld_gradient(student_NV: Tensor, targets: lc.TopK) -> Tensor:
    """``[N, V]``: the half of BiLD that any cache gives exactly."""
    leaf_NV = student_NV.clone().requires_grad_()
    (found_NV,) = torch.autograd.grad(losses.get("t_ld")(leaf_NV, targets).sum(), leaf_NV)
    return found_NV


def measure(
    model: Any, dropped: Dropped, name: str, text: Text, fills: dict[str, SLD], *, with_weights: bool
) -> Result:
    """One student on one text."""
    tallies, coverage, distance = dict.fromkeys((*fills, "bild"), GradientMatch()), 0.0, 0.0
    with without(model, dropped):
        weights = Weights(list(model.parameters())) if with_weights else None
        for ids, teacher_NV in zip(text.contexts, text.teacher, strict=True):
            with torch.set_grad_enabled(with_weights):
                logits_NV = model(input_ids=ids, use_cache=False).logits[0, 1:]
            student_NV, targets = logits_NV.detach(), lc.TopK.from_logits(teacher_NV, K)
            distance += float((teacher_NV.exp() * (teacher_NV - student_NV.log_softmax(1))).sum())
            coverage += float(losses.metrics.s_ld_coverage(student_NV, targets).sum())
            exact_Nk = exact_gradient(student_NV, teacher_NV)
            found = {fill: gradient(loss, student_NV, targets) for fill, loss in fills.items()}
            for fill, gradient_Nk in found.items():
                tallies[fill] = tallies[fill].plus(compare(gradient_Nk, exact_Nk))
            ids_Nk = student_NV.topk(exact_Nk.shape[1], dim=1).indices
            ours_NV, exact_NV = (
                torch.zeros_like(student_NV).scatter_(1, ids_Nk, some) for some in (found["default"], exact_Nk)
            )
            if weights is not None:
                weights.add(logits_NV, ours_NV, exact_NV)
            half_NV = t_ld_gradient(student_NV, targets)
            tallies["bild"] = tallies["bild"].plus(compare(ours_NV.add_(half_NV), exact_NV.add_(half_NV)))
    rows = tallies["default"].rows
    return Result(
        name,
        dropped,
        kl=distance / rows,
        coverage=coverage / rows,
        per_token=tallies["default"].mean_cosine,
        logits=tallies["default"].cosine,
        bild=tallies["bild"].cosine,
        simple=tallies["simple"].cosine,
        estimated=tallies["estimated"].cosine,
        weights=None if weights is None else weights.cosine,
    )


def learn(model: Any, tokenizer: Any, rows: int) -> losses.Estimator:
    """The estimator from so many audit rows."""
    states_AD = hidden_states(model, tokenizer, AUDITED, 3 * CONTEXT)
    with torch.no_grad():
        return losses.Estimator.fit([model.lm_head(states_AD[:: len(states_AD) // rows][:rows])])


@torch.no_grad()
def read(model: Any, tokenizer: Any, documents: list[str]) -> Text:
    contexts = [torch.tensor(tokenizer(document)["input_ids"][:CONTEXT])[None] for document in documents]
    return Text(contexts, [model(input_ids=ids, use_cache=False).logits[0, 1:].log_softmax(1) for ids in contexts])


def students_of(options: argparse.Namespace, model: Any, tokenizer: Any) -> list[Dropped]:
    if not options.pruned:
        return drawn(options.students, options.seed, model.config.num_hidden_layers)
    others = [tokenizer((DATA / name).read_text(encoding="utf-8"))["input_ids"][:PRUNING_TOKENS] for name in AUDITED]
    made = pruned(model, max(options.pruned), torch.tensor(others))
    return [dropped for dropped in made if len(dropped) in options.pruned]


def run(options: argparse.Namespace) -> list[Result]:
    model, tokenizer = load(options.teacher)
    texts = {
        WEIGHED: read(model, tokenizer, [(DATA / name).read_text(encoding="utf-8") for name in MEASURED]),
        "language reference": read(model, tokenizer, [topics[chapter] for chapter in CHAPTERS]),
    }
    estimator = learn(model, tokenizer, AUDIT_ROWS)
    fills = {"default": s_ld(), "simple": s_ld(offset=1, slope=0), "estimated": s_ld(estimator=estimator)}
    results = []
    for dropped in students_of(options, model, tokenizer):
        for name, text in texts.items():
            with_weights = options.weights and name == WEIGHED
            results.append(measure(model, dropped, name, text, fills, with_weights=with_weights))
            print(json.dumps(asdict(results[-1])), file=sys.stderr)
    return sorted(results, key=lambda result: (result.text, result.kl))


def by_text(results: list[Result]) -> dict[str, list[Result]]:
    texts = dict.fromkeys(result.text for result in results)
    return {text: [result for result in results if result.text == text] for text in texts}


def binned_tables(results: list[Result]) -> list[str]:
    """A table a text: median and worst of each measure, by distance."""
    tables = []
    for text, own in by_text(results).items():
        columns = COLUMNS if own[0].weights is None else COLUMNS | WEIGHTS
        header = [f"{text}, nats to the teacher", "students", "coverage", *columns]
        bins = ((low, high, [result for result in own if low <= result.kl < high]) for low, high in BINS)
        rows = [_bin(f"{low} to {high}", near, columns) for low, high, near in bins if near]
        tables.append(table(header, rows))
    return tables


def _bin(name: str, near: list[Result], columns: dict[str, str]) -> list[str]:
    cells = [f"{name}, median {statistics.median(result.kl for result in near):.2f}", str(len(near))]
    cells.append(f"{statistics.median(result.coverage for result in near):.3f}")
    for figure in columns.values():
        values = [getattr(result, figure) for result in near]
        cells.append(f"{statistics.median(values):.3f} ({min(values):.3f})")
    return cells


def pruned_table(results: list[Result]) -> str:
    """A row a student: its distance and the default's cosines, text by text."""
    texts = by_text(results)
    header, rows = ["layers left out"], defaultdict[Dropped, list[str]](list)
    for text, own in texts.items():
        header += [f"nats: {text}", "s-LD", "BiLD"]
        for result in own:
            rows[result.dropped] += [f"{result.kl:.2f}", f"{result.logits:.3f}", f"{result.bild:.3f}"]
    return table(header, [[str(len(dropped)), *rows[dropped]] for dropped in sorted(rows, key=len)])


def plot(results: list[Result], path: Path) -> None:
    from matplotlib import pyplot  # the extra `plot`

    texts = by_text(results)
    figure, axes = pyplot.subplots(1, len(texts), figsize=(11, 4), layout="constrained", sharey=True)
    names = {
        "per_token": "s-LD, each token",
        "bild": "BiLD, all tokens together",
        "logits": "s-LD, all tokens together",
    }
    for axis, (text, own) in zip(axes, texts.items(), strict=True):
        for (name, label), marker in zip(names.items(), "osx", strict=True):
            axis.scatter([r.kl for r in own], [getattr(r, name) for r in own], marker=marker, label=label, s=20)
        axis.set(xlim=(0, BINS[-1][1]), ylim=(0.84, 1.002), title=text, xlabel="student's KL to the teacher, nats")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="cosine with the exact gradient")
    axes[0].legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = teacher_parser(__doc__)
    parser.add_argument("--students", type=int, default=40, help="how many to draw")
    parser.add_argument(
        "--pruned", type=int, nargs="+", metavar="LAYERS", help="take pruned students instead, without so many layers"
    )
    parser.add_argument("--weights", action="store_true", help="measure the gradient of the student's weights, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--plot", type=Path, help="write a picture there")
    parser.add_argument("--json", action="store_true")
    options = parse(parser)
    results = run(options)
    tables = [pruned_table(results)] if options.pruned else binned_tables(results)
    print(json.dumps([asdict(result) for result in results], indent=2) if options.json else "\n\n".join(tables))
    if options.markdown:
        write_tables(options.markdown, tables)
    if options.plot:
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
