"""Top-k targets from logits whose columns are divided over several processes.

Each process chooses its own k largest and adds up the rest. Only these k, and one number, go to the others: gathering
the logits would send V numbers a position.

Shape legend: N positions, P ids of this process's part, k chosen by each process, S processes, C = S · k, K entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from logitcache.targets.largest import log_sum_exp, ranked_ids
from logitcache.targets.topk import TopK, normalised


@dataclass(frozen=True)
class Part:
    """Which columns of the logits this process has.

    Attributes:
        first_id: id of the first column.
        vocab_size: V, over all processes.
        group: the processes, as ``torch.distributed`` names a group.
    """

    first_id: int
    vocab_size: int
    group: distributed.ProcessGroup | None = None


def top_k_of_parts(logits_NP: Tensor, part: Part, k: int) -> TopK:
    """``TopK.from_logits`` of the whole logits, in every process.

    Args:
        logits_NP: this process's columns, float32 or float64; their memory is used, and useless after that.
        part: which columns they are.
        k: K, 1 to V.
    """
    count, mine = len(logits_NP), min(k, logits_NP.shape[1])
    ids_NC = torch.zeros(count, k, dtype=torch.int64, device=logits_NP.device)
    values_NC = logits_NP.new_full((count, k), -math.inf)
    if mine:
        ids_NC[:, :mine] = ranked_ids(logits_NP, mine)
        values_NC[:, :mine] = logits_NP.gather(1, ids_NC[:, :mine])
        logits_NP.scatter_(1, ids_NC[:, :mine], -math.inf)
    rest_N = log_sum_exp(logits_NP, logits_NP.dtype)
    # An entry that a short part doesn't have goes behind every id, so that a real -inf comes first.
    ids_NC += part.first_id
    ids_NC[:, mine:] = part.vocab_size
    ids_NC, values_NC = (torch.cat(_gather(tensor, part), 1) for tensor in (ids_NC, values_NC))
    rest_N = torch.stack(_gather(rest_N, part)).logsumexp(0)
    # In ascending order of id, so that a stable sort by value leaves ties so.
    ids_NC, by_id_NC = ids_NC.sort(1)
    values_NC, by_value_NC = values_NC.gather(1, by_id_NC).sort(dim=1, descending=True, stable=True)
    ids_NC = ids_NC.gather(1, by_value_NC)
    rest_N = torch.logaddexp(rest_N, values_NC[:, k:].logsumexp(1))
    return normalised(ids_NC[:, :k], values_NC[:, :k], rest_N, part.vocab_size)[0]


def _gather(tensor: Tensor, part: Part) -> list[Tensor]:
    size = distributed.get_world_size(part.group)
    gathered = [torch.empty_like(tensor) for _ in range(size)]
    distributed.all_gather(gathered, tensor.contiguous(), part.group)
    return gathered
