"""Reverse KL: mode-seeking distillation (MiniLLM's direction)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcache.losses.base import Loss, check_positive
from logitcache.losses.divergence import kl, log_probs
from logitcache.losses.tail import warn_of_tail, with_student_tail
from logitcache.targets.topk import TopK

# The log of the smallest positive float32. Without it, a teacher's probability of 0 would make the loss infinite.
_FLOOR = math.log(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class ReverseKL(Loss):
    """KL(softmax(z_s/T) ‖ softmax(z_t/T)), without a T² factor.

    Truncated targets: the residual mass is divided over the ids that aren't listed as in the student. At T = 1 this is
    the reverse KL with the tail as one event. At other temperatures the tail's shape is a guess, and a warning says so.
    Where the teacher's probability is 0, the true value is infinite; so a teacher log-prob counts as at least -87.3,
    the log of the smallest positive float32.
    """

    name: ClassVar[str] = "reverse_kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.name, temperature=self.temperature)

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        warn_of_tail(targets, self.name, self.temperature)

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        teacher_NV = log_probs(with_student_tail(targets, logits_NV) / self.temperature).clamp_min(_FLOOR)
        return kl((logits_NV / self.temperature).log_softmax(1), teacher_NV)
