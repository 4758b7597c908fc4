"""Products with the few rows of an output layer's weight that a sparse loss has read.

Shape legend: N positions, D hidden width, V ids of the vocabulary, C ids a position, B positions of one step,
U rows of the weight that get a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Bytes of the gathered rows ``[B, C, D]`` of one step.
_STEP_BYTES = 64 << 20


def rows_times(weight_VD: Tensor, ids_NC: Tensor, gradient_NC: Tensor) -> Tensor:
    """``[N, D]``: Σ over C of gradient · weight row, in the gradient's dtype."""
    if weight_VD.dtype == gradient_NC.dtype:
        return functional.embedding_bag(ids_NC, weight_VD, mode="sum", per_sample_weights=gradient_NC)
    step = max(1, _STEP_BYTES // (8 * ids_NC.shape[1] * weight_VD.shape[1]))
    rows_ND = gradient_NC.new_empty(len(ids_NC), weight_VD.shape[1])
    for start in range(0, len(ids_NC), step):
        some = slice(start, start + step)
        rows_BCD = weight_VD[ids_NC[some]].to(gradient_NC.dtype)
        # A backward pass may run inside autocast, which would compute this product in half precision.
        with torch.autocast(rows_ND.device.type, enabled=False):
            rows_ND[some] = torch.einsum("bc,bcd->bd", gradient_NC[some], rows_BCD)
    return rows_ND


def scatter_rows(hidden_ND: Tensor, ids_NC: Tensor, gradient_NC: Tensor, weight_VD: Tensor) -> Tensor:
    """``[V, D]``: Σ of gradient · hidden for each id that a position reads, in the weight's dtype; zero for other ids.

    The (position, id) pairs are sorted by id, and one weighted sum of hidden states gives one row. Each row is written
    once, so the result is deterministic, and only the result is as large as the weight.
    """
    order = ids_NC.flatten().argsort(stable=True)
    ids_U, counts = torch.unique_consecutive(ids_NC.flatten()[order], return_counts=True)
    offsets = counts.cumsum(0) - counts
    rows_UD = functional.embedding_bag(
        order // ids_NC.shape[1],
        hidden_ND.to(gradient_NC.dtype),
        offsets,
        mode="sum",
        per_sample_weights=gradient_NC.flatten()[order],
    )
    return torch.zeros_like(weight_VD).index_copy_(0, ids_U, rows_UD.to(weight_VD.dtype))
