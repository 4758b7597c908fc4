"""Weighted sums of losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcache.losses.base import Loss
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class Mix(Loss):
    """Σ weight · loss. A position that one part ignores still counts in the other parts."""

    name: ClassVar[str] = "mix"
    parts: tuple[tuple[float, Loss], ...]

    @property
    def needs_labels(self) -> bool:
        return any(loss.needs_labels for _, loss in self.parts)

    @property
    def reads_labels(self) -> bool:
        return any(loss.reads_labels for _, loss in self.parts)

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        for _, loss in self.parts:
            loss.check_inputs(targets, labels)

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        values = [weight * loss.per_token(logits_NV, targets, labels_N) for weight, loss in self.parts]
        return torch.stack(values).sum(0)


def parts_of(loss: Loss) -> tuple[tuple[float, Loss], ...]:
    """The weighted parts of a mix; a single loss is one part of weight 1."""
    return loss.parts if isinstance(loss, Mix) else ((1.0, loss),)
