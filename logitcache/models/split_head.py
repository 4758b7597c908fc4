"""An output layer whose rows are divided over several processes, so that each computes the logits of some ids.

Shape legend: N positions, D hidden width, V ids in the vocabulary, P of them in this process's part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from logitcache.models.finish import Finish
from logitcache.models.head import Head
from logitcache.models.product import operand, product
from logitcache.targets.parts import Part


@dataclass(frozen=True, eq=False)
class SplitHead:
    """This process's rows of an output layer.

    Attributes:
        weight_PD: the rows.
        bias_P: their biases, or None.
        finish: what the model does to raw logits.
        part: which ids they are, and the other processes.
    """

    weight_PD: Tensor
    bias_P: Tensor | None
    finish: Finish
    part: Part

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """``[N, P]`` float32 logits of this part's ids."""
        dtype = self.weight_PD.dtype
        hidden_ND = operand(hidden_ND.to(self.weight_PD.device), dtype)
        logits_NP = product(hidden_ND, operand(self.weight_PD, dtype).T)
        if self.bias_P is not None:
            logits_NP += self.bias_P
        self.finish.in_place(logits_NP)
        return logits_NP


def find_split(head: Head) -> SplitHead | None:
    """The part of a head that this process holds; None if its rows aren't divided over processes."""
    weight: Any = getattr(head.output, "weight", None)
    if head.whole or type(head.output) is not nn.Linear or not isinstance(weight, DTensor):
        return None
    if weight.device_mesh.ndim != 1 or weight.placements != (Shard(0),):
        return None
    if isinstance(head.output.bias, DTensor) and head.output.bias.placements not in ((Shard(0),), (Replicate(),)):
        return None
    group = weight.device_mesh.get_group()
    # As torch divides a dimension: equal parts, the last ones shorter or empty.
    rows, each = len(weight), -(-len(weight) // distributed.get_world_size(group))
    first = min(rows, each * distributed.get_rank(group))
    weight_PD = weight.to_local()
    bias_P = _local(head.output.bias, slice(first, first + len(weight_PD)))
    # Ids from ``vocab_size`` on are rows that the model drops.
    kept = max(0, min(len(weight_PD), head.vocab_size - first))
    part = Part(first, head.vocab_size, group)
    return SplitHead(weight_PD[:kept], None if bias_P is None else bias_P[:kept], head.finish, part)


def _local(bias: Any, mine: slice) -> Tensor | None:
    """This process's biases; ``mine`` are its ids, for a bias that each process holds whole."""
    is_part = isinstance(bias, DTensor) and bias.placements == (Shard(0),)
    local: Tensor | None = bias.to_local() if isinstance(bias, DTensor) else bias
    return local if local is None or is_part else local[mine]
