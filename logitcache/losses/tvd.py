"""Total variation distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcache.losses.base import Loss, check_positive
from logitcache.losses.tail import warn_of_tail, with_student_tail
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class TVD(Loss):
    """½ Σ |softmax(z_t/T) − softmax(z_s/T)|, from 0 to 1.

    Truncated targets: the residual mass is divided over the ids that aren't listed as in the student; at T = 1 their
    part is ½ |residual − the student's mass of these ids|. At other temperatures it is a guess, and a warning says so.
    """

    name: ClassVar[str] = "tvd"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.name, temperature=self.temperature)

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        warn_of_tail(targets, self.name, self.temperature)

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        teacher_NV = (with_student_tail(targets, logits_NV) / self.temperature).softmax(1)
        return (teacher_NV - (logits_NV / self.temperature).softmax(1)).abs().sum(1) / 2
