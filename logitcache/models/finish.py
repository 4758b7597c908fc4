"""How a model turns the raw logits of its output layer into logits: it drops rows, scales, and applies a soft cap.

Shape legend: V ids that the model has logits for, W rows of its output layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Finish:
    """logits = softcap(logit_scale · raw), where softcap(x) = c tanh(x / c).

    Attributes:
        logit_scale: the factor before the cap.
        softcap: c, or None for no cap.
        kept_rows: V, if the model drops the last rows of its output layer; None if it keeps all.
    """

    logit_scale: float = 1.0
    softcap: float | None = None
    kept_rows: int | None = None

    def of(self, raw: Tensor) -> Tensor:
        """``[..., V]`` logits from raw ones ``[..., W]``."""
        if self.kept_rows is not None:
            raw = raw[..., : self.kept_rows]
        if self.logit_scale != 1:
            raw = raw * self.logit_scale
        return raw if self.softcap is None else torch.tanh(raw / self.softcap) * self.softcap

    def in_place(self, raw: Tensor) -> None:
        """The same in the memory of ``raw``, which has V columns already."""
        if self.logit_scale != 1:
            raw *= self.logit_scale
        if self.softcap is not None:
            raw.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient with respect to ``logits``, the finished ones, into that with respect to the raw logits."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap).square())
        return gradient * self.logit_scale if self.logit_scale != 1 else gradient


#: Logits are the raw logits.
UNCHANGED = Finish()
