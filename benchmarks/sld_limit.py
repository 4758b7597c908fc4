"""What the numbers in a row of the cache say of the values it lacks: a network trained to fill them, and the default.

    python -m benchmarks.sld_limit

The network sees the numbers that s-LD has at hand in a row: rank, the student's eight values, which of them are listed
and with what value, the bound, the residual, the entropy and the profile of the listed log-probs; not which words they
belong to. It is trained on the error of the gradient itself, with other students on other text.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

import logitcache as lc
from benchmarks._students import without
from benchmarks._teacher import DATA, load, parse, teacher_parser
from benchmarks.sld_fidelity import MEASURED, STUDENTS, exact_gradient, hidden_states, s_ld
from logitcache.losses.bild import bound
from logitcache.losses.fidelity import compare
from logitcache.losses.tail import look_up

#: The layers that the students lack from which the network learns.
TEACHING: tuple[tuple[int, ...], ...] = ((9,), (25,), (13, 23), (9, 15, 21), (9, 14, 18, 22), (24, 25, 26), (11, 21))
K, SMALL, PROFILE = 64, 8, (0, 1, 3, 7, 15, 31)


class Rows:
    """A student's rows: what the cache says, what is true, and what the network sees."""

    def __init__(self, student_NV: Tensor, teacher_NV: Tensor) -> None:
        targets = lc.TopK.from_logits(teacher_NV, K)
        student_NV = student_NV.log_softmax(1)
        self.student, ids = student_NV.topk(SMALL, dim=1)
        listed, self.known = look_up(targets, ids)
        self.truth = teacher_NV.log_softmax(1).gather(1, ids)
        self.bound = bound(targets)[:, None]
        self.default = s_ld().fill(targets, ids, self.known)
        self.features = self._features(targets, torch.where(self.known, listed - self.bound, 0))

    def _features(self, targets: lc.TopK, above_Nk: Tensor) -> Tensor:
        """``[N, k, F]``."""
        entropy_N1 = -(targets.logprobs.exp() * targets.logprobs).sum(1, keepdim=True)
        profile = (targets.logprobs - self.bound)[:, PROFILE]
        row = [self.bound / 5, entropy_N1, profile / 5, targets.residual_logprob[:, None] / 3]
        row += [self.student / 3, self.known.float(), above_Nk / 5]
        shared = torch.cat(row, 1)[:, None].expand(-1, SMALL, -1)
        rank = torch.eye(SMALL).expand(len(above_Nk), SMALL, SMALL)
        own = torch.stack([self.student / 3, (self.student - self.bound) / 5], 2)
        return torch.cat([shared, rank, own], 2)

    def gradient(self, fill_Nk: Tensor) -> Tensor:
        """The gradient of s-LD with that fill, ``[N, k]``."""
        return exact_gradient(self.student, torch.where(self.known, self.truth, fill_Nk), SMALL)


class Fill(nn.Module):
    """Features of a missing value to how far it lies below the bound."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1), nn.Softplus()
        )

    def forward(self, rows: Rows, chosen: Tensor | slice = slice(None)) -> Tensor:
        below: Tensor = self.layers(rows.features[chosen])[:, :, 0]
        return rows.bound[chosen] - below


def collect(model: Any, tokenizer: Any, files: tuple[str, ...], tokens: int, students: Any) -> dict[Any, Rows]:
    weight_VD = model.get_output_embeddings().weight.detach()
    teacher_ND = hidden_states(model, tokenizer, files, tokens)
    found = {}
    for dropped in students:
        with without(model, dropped):
            student_ND = hidden_states(model, tokenizer, files, tokens)
        parts = [
            Rows(student @ weight_VD.T, teacher @ weight_VD.T)
            for student, teacher in zip(student_ND.split(256), teacher_ND.split(256), strict=True)
        ]
        for name in vars(parts[0]):
            setattr(parts[0], name, torch.cat([getattr(part, name) for part in parts]))
        found[dropped] = parts[0]
        print(f"without layers {dropped}", file=sys.stderr)
    return found


def learn(rows: list[Rows], steps: int) -> Fill:
    """Minimise the squared error of the gradient, each student's as a share of its own gradient's square."""
    torch.manual_seed(0)
    network = Fill(rows[0].features.shape[2])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    lacking = [(~each.known).any(1).nonzero()[:, 0] for each in rows]
    exact = [each.gradient(each.truth) for each in rows]
    for step in range(steps):
        which = step % len(rows)
        each, chosen = rows[which], lacking[which][torch.randint(len(lacking[which]), (1024,))]
        values = torch.where(each.known[chosen], each.truth[chosen], network(each, chosen))
        error = exact_gradient(each.student[chosen], values, SMALL) - exact[which][chosen]
        loss = error.square().sum(1).mean() * len(lacking[which]) / exact[which].square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.requires_grad_(False)


def main() -> int:
    parser = teacher_parser(__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--teaching-tokens", type=int, default=6144)
    options = parse(parser)
    model, tokenizer = load(options.teacher)
    texts = tuple(f"train/{path.name}" for path in sorted((DATA / "train").glob("*.txt")))
    teaching = collect(model, tokenizer, texts, options.teaching_tokens, TEACHING)
    network = learn(list(teaching.values()), options.steps)
    results = {}
    for part, students in (("learnt from", teaching), ("new", collect(model, tokenizer, MEASURED, 1536, STUDENTS))):
        for dropped, rows in students.items():
            exact, fills = rows.gradient(rows.truth), {"default": rows.default, "network": network(rows)}
            results[f"{part}, without {dropped}"] = {
                name: round(compare(rows.gradient(fill), exact).cosine, 4) for name, fill in fills.items()
            }
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
