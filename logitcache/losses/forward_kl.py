"""Forward KL, the usual loss of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcache.losses.base import Loss, check_positive
from logitcache.losses.divergence import kl, log_probs
from logitcache.losses.tail import represent_tail, warn_of_tail, with_student_tail
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class ForwardKL(Loss):
    """KL(softmax(z_t/T) ‖ softmax(z_s/T)), without a T² factor.

    Truncated targets: the residual mass is divided over the ids that aren't listed as in the student. At T = 1 this is
    the KL with the tail as one event (``residual_kl``), a lower bound of the full KL that needs no assumption. At other
    temperatures the tail's shape is a guess, and a warning says so. A teacher entry of -inf adds 0.

    Targets with a sample of the tail: KL(w ‖ student), where w is the teacher on the ranked ids, and divides the tail's
    mass over the sampled ids. At T = 1 the expected gradient is that of the full KL. The value is higher than the full
    KL, because w has a lower entropy than the teacher; the difference doesn't depend on the student, so the value
    doesn't fall to 0.
    """

    name: ClassVar[str] = "forward_kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.name, temperature=self.temperature)

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        if not targets.samples_tail:
            warn_of_tail(targets, self.name, self.temperature)

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        if targets.samples_tail:
            student_NK = (logits_NV / self.temperature).log_softmax(1).gather(1, targets.ids)
            return kl(represent_tail(targets, self.temperature), student_NK)
        teacher_NV = with_student_tail(targets, logits_NV) / self.temperature
        return kl(log_probs(teacher_NV), (logits_NV / self.temperature).log_softmax(1))
