"""Forward KL over the teacher's k most probable ids alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcache.losses.base import Selection, SparseLoss, check_count, check_positive
from logitcache.losses.divergence import kl, log_probs
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class TopKL(SparseLoss):
    """At the teacher's k largest ids: KL(softmax(z_t/T) ‖ softmax(z_s/T)), renormalised over those k.

    It is exact for any targets with K ≥ k entries, at every temperature: the tail isn't used. With fewer entries all K
    are used. It doesn't measure how much probability the student gives to other ids.
    """

    name: ClassVar[str] = "top_kl"
    k: int = 1024
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.name, 1, k=self.k)
        check_positive(self.name, temperature=self.temperature)

    def select(self, logits_NV: Tensor, targets: TopK) -> Selection:
        k = min(self.k, targets.ranked)
        ids_NC, teacher_NC = targets.ids[:, :k], targets.logprobs[:, :k]
        return Selection(ids_NC, teacher_NC, torch.ones_like(ids_NC, dtype=torch.bool))

    def at(self, student_NC: Tensor, selection: Selection) -> Tensor:
        teacher_NC = selection.teacher_NC / self.temperature
        return kl(log_probs(teacher_NC), (student_NC / self.temperature).log_softmax(1))
