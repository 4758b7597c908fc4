"""Forward KL with all ids outside the teacher's top K as one event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcache.losses.base import Loss
from logitcache.losses.divergence import kl, log_probs
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class ResidualKL(Loss):
    """KL over K + 1 events: the listed ids, and all others together. Temperature 1 only.

    This is the unbiased way to use a truncated teacher: it assumes nothing about the tail's shape, and is at most the
    full KL (by the data-processing inequality). At its minimum the student has the teacher's probability at every
    listed id. It equals ``forward_kl`` at temperature 1, and needs less memory. If the student has only the listed ids,
    only those are compared, each distribution normalised over them.
    """

    name: ClassVar[str] = "residual_kl"

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        listed_NK = logits_NV.gather(1, targets.ids)
        if targets.k == logits_NV.shape[1]:
            return kl(log_probs(targets.logprobs), listed_NK.log_softmax(1))
        rest_N = logits_NV.scatter(1, targets.ids, -torch.inf).logsumexp(1)
        # Normalised, because the cache's rounding may change the sum of a row.
        teacher_NK1 = log_probs(torch.cat([targets.logprobs, targets.residual_logprob[:, None]], 1))
        return kl(teacher_NK1, torch.cat([listed_NK, rest_N[:, None]], 1).log_softmax(1))
