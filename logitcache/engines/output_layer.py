"""From a teacher's hidden states to its top-k targets, a chunk of positions at a time.

Shape legend: N positions, C of them in one chunk, D hidden width, E that of the reference, V and W vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from logitcache.models import Head
from logitcache.models.split_head import SplitHead, find_split
from logitcache.models.wide_head import can_widen, wide_logits
from logitcache.targets.beyond import Beyond
from logitcache.targets.parts import top_k_of_parts
from logitcache.targets.topk import TopK

#: Bytes of one chunk's logits in float32: a GPU needs larger chunks than a CPU to be fast.
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}


def chunk_bytes(device: torch.device) -> int:
    """Bytes of one chunk's logits on a device."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])


@dataclass(eq=False)
class OutputLayer:
    """The last part of a teacher, and what a dump keeps of its logits.

    Attributes:
        head: the teacher's.
        top_k: K.
        beyond: how many of the K are a sample of the tail, or candidates.
        reference: the head of the model that chooses the candidates.
        statistics: also give the log-partition and the logits' standard deviation.
        wide: give logits in float32, also if the weights are in half precision.
        chunk_rows: positions whose logits are in memory at a time.
        split: this process's rows of an output layer that several processes hold; None if this one holds all, or if all
            logits of a position are needed together.
    """

    head: Head
    top_k: int
    beyond: Beyond
    reference: Head | None
    statistics: bool
    wide: bool
    device: torch.device
    chunk_rows: int = field(init=False)
    split: SplitHead | None = field(init=False)

    def __post_init__(self) -> None:
        self.chunk_rows = max(1, chunk_bytes(self.device) // (4 * self.head.vocab_size))
        alone = self.statistics or self.beyond.count > 0 or not self.wide
        self.split = None if alone else find_split(self.head)

    @property
    def widens(self) -> bool:
        """True if the logits are float32 although the weights are not."""
        half = self.head.dtype is not None and self.head.dtype.itemsize < 4
        return self.wide and half and (self.split is not None or can_widen(self.head))

    def targets(self, hidden_ND: Tensor, draws_N: Tensor, liked_NE: Tensor | None) -> TopK:
        """Targets of N positions.

        Args:
            hidden_ND: the teacher's last hidden states.
            draws_N: ``[N]`` float64, the random numbers for the sample of the tail.
            liked_NE: the reference's last hidden states, if there is a reference.
        """
        chunks = [slice(start, start + self.chunk_rows) for start in range(0, max(1, len(hidden_ND)), self.chunk_rows)]
        return TopK.cat(
            [
                self._chunk(hidden_ND[chunk], draws_N[chunk], None if liked_NE is None else liked_NE[chunk])
                for chunk in chunks
            ]
        )

    def _chunk(self, hidden_CD: Tensor, draws_C: Tensor, liked_CE: Tensor | None) -> TopK:
        if self.split is not None:
            return top_k_of_parts(self.split.logits(hidden_CD), self.split.part, self.top_k)
        logits_CV = wide_logits(self.head, hidden_CD) if self.widens else self.head.logits(hidden_CD)
        reference_CW = None
        if self.reference is not None and liked_CE is not None:
            reference_CW = self.reference.logits(liked_CE).to(logits_CV.device)
        return TopK.from_logits(
            logits_CV,
            self.top_k,
            statistics=self.statistics,
            overwrite=True,
            draws=draws_C,
            reference=reference_CW,
            **self.beyond.recorded(),
        )
