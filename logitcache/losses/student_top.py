"""The student's k largest logits, found without sorting the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64


def student_top_ids(logits_NV: Tensor, k: int) -> Tensor:
    """Ids ``[N, k]`` of each row's k largest entries, in descending order. No gradient.

    The k largest entries lie in the k blocks with the largest maxima, so a maximum over blocks of 64 (one fast pass
    over memory) leaves 64 k candidates to rank. Equal logits may come in any order, and the same one every time.
    """
    logits_NV = logits_NV.detach()
    blocks = logits_NV.shape[1] // _BLOCK
    if blocks <= 4 * k:
        return logits_NV.topk(k, dim=1).indices
    whole = blocks * _BLOCK
    maxima_NB = logits_NV[:, :whole].view(-1, blocks, _BLOCK).amax(2)
    best_Nk = maxima_NB.topk(k, dim=1, sorted=False).indices
    within_B = torch.arange(_BLOCK, device=logits_NV.device)
    candidates_NC = (best_Nk[:, :, None] * _BLOCK + within_B).flatten(1)
    if whole < logits_NV.shape[1]:
        rest = torch.arange(whole, logits_NV.shape[1], device=logits_NV.device)
        candidates_NC = torch.cat([candidates_NC, rest.expand(len(logits_NV), -1)], 1)
    return candidates_NC.gather(1, logits_NV.gather(1, candidates_NC).topk(k, dim=1).indices)
