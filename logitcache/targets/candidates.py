"""Candidates: the ids outside the top that another model likes best, and s-LD is therefore likely to ask for.

Shape legend: N positions, V ids of the teacher's vocabulary, W of the reference's, K entries of which the last C
are candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def choose_candidates(logits_NV: Tensor, ids_NK: Tensor, count: int, reference_NW: Tensor) -> Tensor:
    """Replace the last ``count`` of each row's top ids by those that the reference likes best among all others.

    Args:
        logits_NV: the teacher's, up to a constant.
        ids_NK: int64, the teacher's largest K, in descending order.
        count: C, below K.
        reference_NW: the reference's logits. Ids that it doesn't know it doesn't like; fewer than V are enough.

    Returns:
        int64 ``[N, K]``, in descending order of the teacher's logit as well, no id twice.
    """
    ranked_NR = ids_NK[:, :-count]
    lowest = torch.finfo(logits_NV.dtype).min
    liked_NV = torch.full_like(logits_NV, lowest)
    known = min(logits_NV.shape[1], reference_NW.shape[1])
    liked_NV[:, :known] = reference_NW[:, :known].to(liked_NV).nan_to_num(nan=lowest, neginf=lowest)
    liked_NV.scatter_(1, ranked_NR, -torch.inf)
    found_NC = liked_NV.topk(count, dim=1).indices.sort(1).values
    by_value_NC = logits_NV.gather(1, found_NC).sort(dim=1, descending=True, stable=True).indices
    return torch.cat([ranked_NR, found_NC.gather(1, by_value_NC)], 1)
