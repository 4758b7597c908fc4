"""The largest ids and log Σ exp of each row of logits. Each row is read as few times as possible in plain torch.

Shape legend: N positions, V ids in the vocabulary, k largest, B blocks of a row, C candidates, T columns of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64
# Of one tile, which stays in the cache of a core, or of a large GPU (50 MB), from one operation to the next.
_TILE_BYTES = {"cpu": 1 << 20}
_GPU_TILE_BYTES = 32 << 20


def largest_ids(logits_NV: Tensor, k: int) -> Tensor:
    """Ids ``[N, k]`` of each row's k largest entries, in descending order. No gradient.

    The k largest entries are in the k blocks with the largest maxima. So one reading of the row, for the maximum of
    each block of 64, leaves 64 k candidates. (``topk`` alone reads a row several times, and takes about twice as long
    on a CPU.) Equal logits are in any order, but in the same order every time.
    """
    logits_NV = logits_NV.detach()
    blocks = logits_NV.shape[1] // _BLOCK
    if blocks <= 4 * k:
        return logits_NV.topk(k, dim=1).indices
    whole = blocks * _BLOCK
    maxima_NB = logits_NV[:, :whole].view(-1, blocks, _BLOCK).amax(2)
    best_Nk = maxima_NB.topk(k, dim=1, sorted=False).indices
    within = torch.arange(_BLOCK, device=logits_NV.device)
    candidates_NC = (best_Nk[:, :, None] * _BLOCK + within).flatten(1)
    if whole < logits_NV.shape[1]:
        rest = torch.arange(whole, logits_NV.shape[1], device=logits_NV.device)
        candidates_NC = torch.cat([candidates_NC, rest.expand(len(logits_NV), -1)], 1)
    return candidates_NC.gather(1, logits_NV.gather(1, candidates_NC).topk(k, dim=1).indices)


def ranked_ids(logits_NV: Tensor, k: int) -> Tensor:
    """The same, with ties in ascending order of id: equal logits must give equal caches."""
    ids_Nk = largest_ids(logits_NV, k).sort(dim=1).values
    by_value_Nk = logits_NV.gather(1, ids_Nk).sort(dim=1, descending=True, stable=True).indices
    return ids_Nk.gather(1, by_value_Nk)


def log_sum_exp(values_NV: Tensor, dtype: torch.dtype) -> Tensor:
    """log Σ exp of each row, ``[N]``, in ``dtype``; -inf if every entry of the row is.

    Each row is read once, in tiles of columns: no copy of ``[N, V]`` is made, for any dtype of the values. The sum
    is relative to the largest value so far (Milakov and Gimelshein, arXiv 1805.02867).
    """
    count, vocab_size = values_NV.shape
    width = max(1, _TILE_BYTES.get(values_NV.device.type, _GPU_TILE_BYTES) // (4 * max(1, count)))
    # Not -inf: the first tile of a row may hold only -inf, and -inf - -inf is NaN.
    largest_N1 = values_NV.new_full((count, 1), torch.finfo(dtype).min, dtype=dtype)
    sum_N1 = torch.zeros_like(largest_N1)
    for start in range(0, vocab_size, width):
        tile_NT = values_NV[:, start : start + width].to(dtype, copy=True)
        larger_N1 = torch.maximum(largest_N1, tile_NT.amax(1, keepdim=True))
        sum_N1 *= (largest_N1 - larger_N1).exp_()
        sum_N1 += tile_NT.sub_(larger_N1).exp_().sum(1, keepdim=True)
        largest_N1 = larger_N1
    return (sum_N1.log_() + largest_N1)[:, 0]
