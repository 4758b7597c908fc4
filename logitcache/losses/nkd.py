"""NKD: normalised knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcache.losses.base import Loss, check_not_negative, check_positive
from logitcache.losses.dkd import split
from logitcache.losses.tail import warn_of_tail, with_student_tail
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class NKD(Loss):
    """−p_t(c) log p_s(c) − γ Σ over i ≠ c of p̃_t(i) log p̃_s(i), c the teacher's most probable id (Yang et al. 2023).

    p is at temperature 1; p̃ is the softmax at temperature T over all ids except c. It is a cross-entropy: never
    negative, but not 0 if student and teacher are equal. Truncated targets: the first term is exact; in the second the
    tail is assumed to have the student's shape (its mass is exact at T = 1; at other temperatures it is a guess, and a
    warning says so).
    """

    name: ClassVar[str] = "nkd"
    gamma: float = 0.25
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.name, temperature=self.temperature)
        check_not_negative(self.name, gamma=self.gamma)

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        warn_of_tail(targets, self.name, self.temperature)

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        class_N = targets.ids[:, 0]
        teacher_NV = with_student_tail(targets, logits_NV)
        student_N = logits_NV.log_softmax(1).gather(1, class_N[:, None])[:, 0]
        first_N = -teacher_NV.log_softmax(1).gather(1, class_N[:, None])[:, 0].exp() * student_N
        _, teacher_others_NV = split(teacher_NV / self.temperature, class_N)
        _, student_others_NV = split(logits_NV / self.temperature, class_N)
        # At the class itself both are -inf, and 0 * inf would be NaN.
        student_others_NV = torch.where(teacher_others_NV > -torch.inf, student_others_NV, 0)
        return first_N - self.gamma * (teacher_others_NV.exp() * student_others_NV).sum(1)
