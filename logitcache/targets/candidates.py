"""Candidates: the ids outside the top that have the largest logits in another model, the reference.

If the reference is like the student, s-LD is likely to need the teacher's values at these ids.

Shape legend: N positions, V ids of the teacher's vocabulary, W of the reference's, K entries of which the last C
are candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def choose_candidates(logits_NV: Tensor, ids_NK: Tensor, count: int, reference_NW: Tensor) -> Tensor:
    """Replace the last ``count`` of each row's top ids by the ids with the reference's largest logits among all others.

    Args:
        logits_NV: the teacher's logits; a constant for each row may be added.
        ids_NK: int64, the ids of the teacher's K largest logits, in descending order.
        count: C, below K.
        reference_NW: the reference's logits. W may be below V: ids that the reference doesn't have are chosen last.

    Returns:
        int64 ``[N, K]``; the first K - C as before, then C candidates in descending order of the teacher's logit.
    """
    ranked_NR = ids_NK[:, :-count]
    lowest = torch.finfo(logits_NV.dtype).min
    scores_NV = torch.full_like(logits_NV, lowest)
    known = min(logits_NV.shape[1], reference_NW.shape[1])
    scores_NV[:, :known] = reference_NW[:, :known].to(scores_NV).nan_to_num(nan=lowest, neginf=lowest)
    scores_NV.scatter_(1, ranked_NR, -torch.inf)
    found_NC = scores_NV.topk(count, dim=1).indices.sort(1).values
    by_value_NC = logits_NV.gather(1, found_NC).sort(dim=1, descending=True, stable=True).indices
    return torch.cat([ranked_NR, found_NC.gather(1, by_value_NC)], 1)
