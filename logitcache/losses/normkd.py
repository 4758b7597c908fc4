"""NormKD: the temperature depends on the standard deviation of each position's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcache.losses.base import Loss, check_positive
from logitcache.losses.divergence import kl
from logitcache.losses.tail import finite_variance, logit_std, warn_of_tail, with_student_tail
from logitcache.targets.topk import TopK

# A row of logits with a smaller standard deviation counts as constant; its normalised logits are equal.
_LEAST_STD = 1e-4


@dataclass(frozen=True)
class NormKD(Loss):
    """(T σ_t)² · KL(softmax(z_t/(T σ_t)) ‖ softmax(z_s/(T σ_s))), σ the unbiased std of a model's own V logits.

    The gradient flows through σ_s (Chi et al. 2023). Truncated targets need ``logit_std``, which a dump stores with
    ``--statistics``. The tail is assumed to have the student's shape; this is a guess at any T, and a warning says so.
    A σ below 1e-4 counts as 1e-4.
    """

    name: ClassVar[str] = "normkd"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.name, temperature=self.temperature)

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        logit_std(targets, self.name)
        warn_of_tail(targets, self.name, self.temperature, always=True)

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        teacher_NV, student_NV, scale_N = normalised(logits_NV, targets, self.name, self.temperature)
        return scale_N.square() * kl(teacher_NV.log_softmax(1), student_NV.log_softmax(1))


def normalised(logits_NV: Tensor, targets: TopK, loss: str, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher's and student's logits ``[N, V]``, each divided by T times its own σ; and T σ_t ``[N]``."""
    scale_N = temperature * logit_std(targets, loss).clamp_min(_LEAST_STD)
    teacher_NV = with_student_tail(targets, logits_NV)
    # Only differences matter; subtracting the maximum first makes a constant row exactly zero.
    teacher_NV = (teacher_NV - teacher_NV.amax(1, keepdim=True)) / scale_N[:, None]
    centred_NV = logits_NV - logits_NV.detach().amax(1, keepdim=True)
    student_NV = centred_NV / (temperature * _student_std(centred_NV))[:, None]
    return teacher_NV, student_NV, scale_N


def _student_std(logits_NV: Tensor) -> Tensor:
    """σ ``[N]`` with gradient. The logits must be near 0, because σ loses digits far from it."""
    # The slope of the root at 0 is infinite, so the minimum is applied under the root.
    return finite_variance(logits_NV).clamp_min(_LEAST_STD**2).sqrt()
