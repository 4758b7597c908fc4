"""Cross-entropy with the next token of the text: ordinary fine-tuning, for comparison and for mixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from logitcache.losses.base import IGNORED_LABEL, Loss
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """−log softmax(z_s)[label]. It doesn't use the teacher; a position whose label is -100 gives 0."""

    name: ClassVar[str] = "cross_entropy"

    @property
    def needs_labels(self) -> bool:
        return True

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        assert labels_N is not None
        return functional.cross_entropy(logits_NV, labels_N, reduction="none", ignore_index=IGNORED_LABEL)
