"""Generalised Jensen-Shannon divergence, as GKD uses it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcache.errors import ConfigError
from logitcache.losses.base import Loss, check_positive
from logitcache.losses.divergence import kl, log_probs
from logitcache.losses.tail import warn_of_tail, with_student_tail
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class JSD(Loss):
    """β KL(p_t ‖ m) + (1 − β) KL(p_s ‖ m) with m = β p_t + (1 − β) p_s, all at temperature T (Agarwal et al. 2024).

    β = 0.5 is the symmetric Jensen-Shannon divergence, at most log 2 nats. Truncated targets are used as in
    ``forward_kl``: at T = 1 the tail is one event; at other temperatures its shape is a guess, and a warning says so.
    """

    name: ClassVar[str] = "jsd"
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.name, temperature=self.temperature)
        if not isinstance(self.beta, (int, float)) or not 0 < self.beta < 1:
            raise ConfigError(f"jsd: beta = {self.beta!r} is not allowed; it must lie between 0 and 1")

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        warn_of_tail(targets, self.name, self.temperature)

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        teacher_NV = log_probs(with_student_tail(targets, logits_NV) / self.temperature)
        student_NV = (logits_NV / self.temperature).log_softmax(1)
        middle_NV = torch.logaddexp(teacher_NV + math.log(self.beta), student_NV + math.log1p(-self.beta))
        return self.beta * kl(teacher_NV, middle_NV) + (1 - self.beta) * kl(student_NV, middle_NV)
