"""An output layer whose rows are divided over several processes, so that each computes the logits of some ids.

Shape legend: N positions, D hidden width, V ids in the vocabulary, P of them in this process's part.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import Tensor, distributed, nn

from logitcache.models.finish import Finish
from logitcache.models.head import Head
from logitcache.models.product import wide_product
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
        logits_NP = wide_product(hidden_ND, self.weight_PD)
        if self.bias_P is not None:
            logits_NP += self.bias_P
        self.finish.in_place(logits_NP)
        return logits_NP


def find_split(head: Head) -> SplitHead | None:
    """The part of a head that this process holds; None if its rows aren't divided over processes."""
    weight: Any = getattr(head.output, "weight", None)
    if head.whole or type(head.output) is not nn.Linear or not is_divided(weight):
        return None
    from torch.distributed.tensor import Replicate, Shard

    if weight.device_mesh.ndim != 1 or weight.placements != (Shard(0),):
        return None
    bias: Any = head.output.bias
    if is_divided(bias) and bias.placements not in ((Shard(0),), (Replicate(),)):
        return None
    group = weight.device_mesh.get_group()
    # As torch divides a dimension: equal parts, the last ones shorter or empty.
    rows, each = len(weight), -(-len(weight) // distributed.get_world_size(group))
    first = min(rows, each * distributed.get_rank(group))
    weight_PD = weight.to_local()
    is_part = is_divided(bias) and bias.placements == (Shard(0),)
    bias_P: Tensor | None = bias.to_local() if is_divided(bias) else bias
    if bias_P is not None and not is_part:  # each process holds the whole bias
        bias_P = bias_P[first : first + len(weight_PD)]
    # Ids from ``vocab_size`` on are rows that the model drops.
    kept = max(0, min(len(weight_PD), head.vocab_size - first))
    part = Part(first, head.vocab_size, group)
    return SplitHead(weight_PD[:kept], None if bias_P is None else bias_P[:kept], head.finish, part)


def is_divided(value: Any) -> bool:
    """True for a tensor that is divided over processes, or that each holds as its copy: a ``DTensor``."""
    # Its module takes most of a second to load. Who has such a tensor has loaded it.
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(value, loaded.DTensor)
