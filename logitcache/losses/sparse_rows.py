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
    """``[V, D]``: the sum of gradient · hidden for each row that a position reads, in the weight's dtype; others are 0.

    The P = N · C (position, id) pairs are sorted by id, so that one weighted bag of hidden states gives one row: each
    row is written once, which makes the result deterministic. No shape depends on values, so that a GPU never has to
    report how many rows there are before the host can go on.
    """
    ids_P, order_P = ids_NC.flatten().sort(stable=True)
    from_P, by_P = order_P // ids_NC.shape[1], gradient_NC.flatten()[order_P]
    hidden_ND = hidden_ND.to(gradient_NC.dtype)
    if weight_VD.dtype == gradient_NC.dtype:
        starts_V = torch.searchsorted(ids_P, torch.arange(len(weight_VD), device=ids_P.device))
        return functional.embedding_bag(from_P, hidden_ND, starts_V, mode="sum", per_sample_weights=by_P)
    # One bag a row of the weight would need [V, D] a second time, in float32: here one a pair. The bags that are left
    # over are empty, and add 0 to the first row.
    is_first_P = torch.ones_like(ids_P, dtype=torch.bool)
    is_first_P[1:] = ids_P[1:] != ids_P[:-1]
    bag_P, place_P = is_first_P.cumsum(0) - 1, torch.arange(len(ids_P), device=ids_P.device)
    starts_P = torch.full_like(place_P, len(ids_P)).scatter_reduce_(0, bag_P, place_P, "amin")
    row_P = torch.zeros_like(ids_P).scatter_(0, bag_P, ids_P)
    rows_PD = functional.embedding_bag(from_P, hidden_ND, starts_P, mode="sum", per_sample_weights=by_P)
    return torch.zeros_like(weight_VD).index_add_(0, row_P, rows_PD.to(weight_VD.dtype))
