"""A teacher's logits in float32 from an output layer in half precision.

A bfloat16 logit between 16 and 32 is a multiple of 1/8, so that rounding alone moves a log-prob by up to 1/16 nat. Here
the operands stay in half precision, and their product is added up and returned in float32.

Shape legend: N positions, D hidden width, V ids in the vocabulary, R rows of the weight that are read together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logitcache.models.head import Head
from logitcache.models.product import operand, product, reads_half, wide
from logitcache.models.split_head import is_divided

# Of the weight's rows that a device without half-precision products widens at a time.
_WIDENED_BYTES = 64 << 20


def can_widen(head: Head) -> bool:
    """True if the output layer is a plain matrix in half precision, which is on a device and whole."""
    if head.why_dense:
        return False
    weight = head.weight
    at_hand = not is_divided(weight) and weight.device.type != "meta"
    return at_hand and weight.dtype in (torch.bfloat16, torch.float16)


def wide_logits(head: Head, hidden_ND: Tensor) -> Tensor:
    """``[N, V]`` float32 logits of a head for which :func:`can_widen` holds. The weight is never copied as a whole."""
    weight_VD, bias_V = head.weight.detach(), head.bias
    dtype = weight_VD.dtype
    hidden_ND = operand(hidden_ND.to(weight_VD.device), dtype)
    logits_NV = torch.empty(len(hidden_ND), len(weight_VD), dtype=wide(dtype), device=weight_VD.device)
    rows = len(weight_VD) if reads_half(weight_VD) else max(1, _WIDENED_BYTES // (4 * weight_VD.shape[1]))
    for start in range(0, len(weight_VD), rows):
        weight_RD = operand(weight_VD[start : start + rows], dtype)
        product(hidden_ND, weight_RD.T, out_MP=logits_NV[:, start : start + rows])
    if bias_V is not None:
        logits_NV += bias_V
    head.finish.in_place(logits_NV)
    return logits_NV
