"""Decoupled knowledge distillation, on normalised logits as in the BiLD paper's comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from logitcache.losses.base import IGNORED_LABEL, Loss, check_not_negative, check_positive
from logitcache.losses.divergence import kl
from logitcache.losses.normkd import normalised
from logitcache.losses.tail import logit_std, warn_of_tail
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class DKD(Loss):
    """(T σ_t)² · (α KL between the target class and all others + β KL over the others alone), as Zhao et al. 2022.

    Both models' logits are normalised by T times their own σ first (see ``normkd``). The target class is the label, or
    the teacher's most probable id where the label is ignored (-100) or no labels are given. Truncated targets need
    ``logit_std``. The tail is assumed to have the student's shape; this is a guess at any T, and a warning says so.
    """

    name: ClassVar[str] = "dkd"
    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.name, temperature=self.temperature)
        check_not_negative(self.name, alpha=self.alpha, beta=self.beta)

    @property
    def reads_labels(self) -> bool:
        return True

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        logit_std(targets, self.name)
        warn_of_tail(targets, self.name, self.temperature, always=True)

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        class_N = targets.ids[:, 0]
        if labels_N is not None:
            class_N = torch.where(labels_N == IGNORED_LABEL, class_N, labels_N)
        teacher_NV, student_NV, scale_N = normalised(logits_NV, targets, self.name, self.temperature)
        teacher_N2, teacher_others_NV = split(teacher_NV, class_N)
        student_N2, student_others_NV = split(student_NV, class_N)
        loss_N = self.alpha * kl(teacher_N2, student_N2) + self.beta * kl(teacher_others_NV, student_others_NV)
        return scale_N.square() * loss_N


def split(logits_NV: Tensor, class_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs ``[N, 2]`` of (class, all others), and ``[N, V]`` over the others alone, -inf at the class.

    If the others have no mass at all, they count as equally probable among themselves.
    """
    others_NV = logits_NV.scatter(1, class_N[:, None], -torch.inf)
    rest_N1 = others_NV.logsumexp(1, keepdim=True)
    class_N1 = logits_NV.gather(1, class_N[:, None])
    both_N2 = functional.log_softmax(torch.cat([class_N1, rest_N1], 1), 1)
    empty_N1 = rest_N1 == -torch.inf
    equal_NV = torch.zeros_like(others_NV).scatter(1, class_N[:, None], -torch.inf)
    return both_N2, torch.where(empty_N1, equal_NV, others_NV).log_softmax(1)
