"""A teacher's logits in float32 from an output layer in half precision.

A bfloat16 logit between 16 and 32 is a multiple of 1/8, so that rounding alone moves a log-prob by up to 1/16 nat. Here
the operands stay in half precision, and their product is added up and returned in float32.

Shape legend: N positions, D hidden width, V ids in the vocabulary, R rows of the weight that are read together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logitcache.models.head import Head
from logitcache.models.product import wide_product
from logitcache.models.split_head import is_divided


def can_widen(head: Head) -> bool:
    """True if the output layer is a plain matrix in half precision, which is on a device and whole."""
    if head.why_dense:
        return False
    weight = head.weight
    at_hand = not is_divided(weight) and weight.device.type != "meta"
    return at_hand and weight.dtype in (torch.bfloat16, torch.float16)


def wide_logits(head: Head, hidden_ND: Tensor) -> Tensor:
    """``[N, V]`` float32 logits of a head for which :func:`can_widen` holds. The weight is never copied as a whole."""
    logits_NV = wide_product(hidden_ND, head.weight)
    if head.bias is not None:
        logits_NV += head.bias
    head.finish.in_place(logits_NV)
    return logits_NV
