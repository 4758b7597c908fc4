"""How closely s-LD from a cache follows the exact one: coverage by K, and cosine of the gradients by policy.

    python -m benchmarks.sld_fidelity --markdown benchmarks/results/sld_fidelity.md \\
        --plot benchmarks/results/sld_fidelity.png

Students are the teacher without some of its layers. The gradient is that of s-LD (k = 8, T = 3), summed over tokens,
with respect to the student's logits. The cosine is taken over all tokens together, as one step of training adds them
up, and token by token, averaged. The exact gradient is computed here, from all logits. Neither this text nor these
students served to choose an offset, a slope or an estimate. Where a fill is *chosen*, that is on audit rows of other
text, as `logitcache train --audit` does it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitcache as lc
from benchmarks._markdown import table, write_tables
from benchmarks._students import without
from benchmarks._teacher import DATA, load, parse, teacher_parser
from logitcache import losses
from logitcache.losses.bild import SLD
from logitcache.losses.fidelity import GradientMatch, best_fill, compare, gradient

MEASURED = ("more/1901_theodore_roosevelt.txt", "more/1961_dwight_d_eisenhower.txt", "more/1995_william_j_clinton.txt")
AUDITED = ("train/1961_john_f_kennedy.txt", "train/1962_john_f_kennedy.txt", "train/1963_john_f_kennedy.txt")
# The layers that each student lacks.
STUDENTS: tuple[tuple[int, ...], ...] = (
    (26,),
    (13, 19),
    (10, 20),
    (10, 16, 22),
    (20, 24),
    (12, 18, 24),
    (8, 12, 16, 20, 24),
    (22, 23, 24, 25),
)
TOP_KS = (8, 16, 32, 64, 128, 256, 512)
CONTEXT, PART = 512, 256
#: Ends of the names of the policies whose mean over tokens is in the table.
SHOWN_BY_TOKEN = (", b − 1", ", default", ", chosen")
UNION = "K=64 and another student's best 16"


def hidden_states(model: Any, tokenizer: Any, files: tuple[str, ...], tokens: int) -> Tensor:
    """``[N, D]`` last hidden states on ``tokens`` tokens of the files, in equal parts, without each context's first."""
    share, rows = tokens // len(files) // CONTEXT * CONTEXT, []
    for name in files:
        ids = tokenizer((DATA / name).read_text(encoding="utf-8"))["input_ids"][: max(CONTEXT, share)]
        with torch.no_grad():
            rows += [
                model.model(input_ids=chunk[None], use_cache=False).last_hidden_state[0, 1:]
                for chunk in torch.tensor(ids).split(CONTEXT)
            ]
    return torch.cat(rows)


def exact_gradient(student_NV: Tensor, teacher_NV: Tensor, k: int = 8, temperature: float = 3.0) -> Tensor:
    """The same with every teacher value at hand: pairs of softmax differences, as the paper writes them."""
    first, second = torch.triu_indices(k, k, 1)
    signs_Pk = torch.zeros(len(first), k)
    signs_Pk[torch.arange(len(first)), first], signs_Pk[torch.arange(len(first)), second] = 1.0, -1.0
    ids_Nk = student_NV.topk(k, dim=1).indices
    student_NP, teacher_NP = (
        (values_NV.gather(1, ids_Nk) @ signs_Pk.T / temperature).softmax(1) for values_NV in (student_NV, teacher_NV)
    )
    return (student_NP - teacher_NP) @ signs_Pk / temperature


def s_ld(**settings: Any) -> SLD:
    loss = losses.get("s_ld", **settings)
    assert isinstance(loss, SLD)
    return loss


def policies(estimator: losses.Estimator, audit: list[tuple[Tensor, lc.TopK]]) -> dict[str, tuple[int, SLD]]:
    """Name to (K, loss)."""
    known: dict[str, tuple[int, SLD]] = {
        "K=64, b": (64, s_ld(offset=0, slope=0)),
        "K=64, b − 1": (64, s_ld(offset=1, slope=0)),
        "K=64, leave the pair out": (64, s_ld(missing="drop")),
    }
    for k in (64, 128, 256, 512):
        known[f"K={k}, default"] = (k, s_ld())
        known[f"K={k}, estimator"] = (k, s_ld(estimator=estimator))
        known[f"K={k}, chosen"] = (k, best_fill(s_ld(), audit, k, estimator)[0])
    return known


def parts(teacher_ND: Tensor, student_ND: Tensor, weight_VD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for teacher, student in zip(teacher_ND.split(PART), student_ND.split(PART), strict=True):
        yield (teacher @ weight_VD.T).log_softmax(1), student @ weight_VD.T


def measure(
    teacher_ND: Tensor, student_ND: Tensor, reference_ND: Tensor, weight_VD: Tensor, known: dict[str, tuple[int, SLD]]
) -> dict[str, Any]:
    """One student's distance, coverage by K, and cosines by policy."""
    tallies = dict.fromkeys((*known, UNION), GradientMatch())
    coverage = dict.fromkeys(TOP_KS, 0.0)
    distance, references = 0.0, reference_ND.split(PART)
    for number, (teacher_NV, student_NV) in enumerate(parts(teacher_ND, student_ND, weight_VD)):
        distance += float((teacher_NV.exp() * (teacher_NV - student_NV.log_softmax(1))).sum())
        exact_Nk, targets = exact_gradient(student_NV, teacher_NV), lc.TopK.from_logits(teacher_NV, TOP_KS[-1])
        for k in TOP_KS:
            coverage[k] += float(losses.metrics.s_ld_coverage(student_NV, targets.top(k)).sum())
        for name, (k, loss) in known.items():
            tallies[name] = tallies[name].plus(compare(gradient(loss, student_NV, targets.top(k)), exact_Nk))
        more = lc.TopK.from_logits(teacher_NV, 80, candidates=16, reference=references[number] @ weight_VD.T)
        tallies[UNION] = tallies[UNION].plus(compare(gradient(s_ld(), student_NV, more), exact_Nk))
    count = len(teacher_ND)
    return {
        "kl": distance / count,
        "coverage": {k: value / count for k, value in coverage.items()},
        "cosine": {name: tally.cosine for name, tally in tallies.items()},
        "mean_cosine": {name: tally.mean_cosine for name, tally in tallies.items()},
    }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    model, tokenizer = load(options.teacher)
    weight_VD = model.get_output_embeddings().weight.detach()
    sample = slice(None, None, 3 * CONTEXT // (2 * options.audit_rows) or 1)
    audit_AD = hidden_states(model, tokenizer, AUDITED, 3 * CONTEXT)[sample]
    teacher_ND = hidden_states(model, tokenizer, MEASURED, options.tokens)
    states: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for dropped in STUDENTS:
        with without(model, dropped):
            measured = hidden_states(model, tokenizer, MEASURED, options.tokens)
            states[dropped] = measured, hidden_states(model, tokenizer, AUDITED, 3 * CONTEXT)[sample]
    # Every other audit row teaches, the rest decides.
    estimator = losses.Estimator.fit([audit_AD[::2] @ weight_VD.T], rank=options.rank)
    full = lc.TopK.from_logits(audit_AD[1::2] @ weight_VD.T, len(weight_VD))
    results = []
    for number, dropped in enumerate(STUDENTS):
        student_ND, student_AD = states[dropped]
        reference_ND, _ = states[STUDENTS[number - 1]]  # a student that isn't the one measured
        known = policies(estimator, [(student_AD[1::2] @ weight_VD.T, full)])
        result = {"dropped": dropped, **measure(teacher_ND, student_ND, reference_ND, weight_VD, known)}
        results.append(result)
        print(f"without layers {dropped}: {result['kl']:.2f} nats", file=sys.stderr)
    return sorted(results, key=lambda result: result["kl"])


def tables(results: list[dict[str, Any]]) -> list[str]:
    """Coverage by K, and cosines by policy, over all tokens together and token by token; a column a student."""
    distances = [f"{result['kl']:.2f}" for result in results]
    rows = [[f"K={k}", *(f"{result['coverage'][k]:.3f}" for result in results)] for k in TOP_KS]
    found = [table(["coverage, by the student's KL to the teacher in nats", *distances], rows)]
    for title, key in (("over all tokens together", "cosine"), ("mean over tokens", "mean_cosine")):
        names = [name for name in results[0][key] if key == "cosine" or name.endswith(SHOWN_BY_TOKEN)]
        rows = [[name, *(f"{result[key][name]:.3f}" for result in results)] for name in names]
        found.append(table([f"gradient cosine, {title}", *distances], rows))
    return found


def plot(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot  # the extra `plot`

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for result in results:
        left.plot(TOP_KS, [result["coverage"][k] for k in TOP_KS], marker="o", label=f"{result['kl']:.2f} nats")
    left.set(xscale="log", xticks=TOP_KS, xticklabels=TOP_KS, xlabel="K", ylabel="student's top 8 in the cache")
    left.legend(title="KL to the teacher", fontsize=8)
    left.grid(alpha=0.3)
    for name in ("K=64, b − 1", "K=64, default", "K=64, chosen", "K=256, default", "K=256, chosen"):
        values = [result["cosine"][name] for result in results]
        right.plot([result["kl"] for result in results], values, marker="o", label=name)
    right.set(xlabel="student's KL to the teacher, nats", ylabel="cosine with the exact s-LD gradient")
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = teacher_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=1536, help="tokens measured on")
    parser.add_argument("--audit-rows", type=int, default=128, help="so many to learn from, and to decide")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--plot", type=Path, help="write a picture there")
    parser.add_argument("--json", action="store_true")
    options = parse(parser)
    results = run(options)
    found = tables(results)
    print(json.dumps(results, indent=2) if options.json else "\n\n".join(found))
    if options.markdown:
        write_tables(options.markdown, found)
    if options.plot:
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
