"""Targets that also hold the ids another model prefers: more of what s-LD asks for, at a few entries a token.

Shape legend: N positions, V words, K top entries, U candidates added.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from logitcache.errors import TargetsError
from logitcache.losses.student_top import student_top_ids
from logitcache.topk import TopK


def with_candidates(targets: TopK, teacher_logits: Tensor, reference_logits: Tensor, extra: int) -> TopK:
    """The teacher's top K, and ``extra`` more ids: those that a reference student likes best and K doesn't hold.

    The result is an ordinary ``TopK`` of K + ``extra`` entries in the teacher's order, which every cache can store.
    Its first K entries are the teacher's largest: give that K to the loss as ``ranked``. Where a cache is dumped for
    one student, s-LD is then exact at the start of training, and near it for longer.

    Args:
        targets: the teacher's top K of ``teacher_logits``.
        teacher_logits, reference_logits: ``[N, V]``, before any softmax.
        extra: U, at most V − K.

    Raises:
        TargetsError: shapes don't fit, or there are fewer than ``extra`` other ids.
    """
    if teacher_logits.shape != reference_logits.shape or len(targets) != len(teacher_logits):
        raise TargetsError(
            f"teacher logits {tuple(teacher_logits.shape)}, reference logits {tuple(reference_logits.shape)} and "
            f"{len(targets)} rows of targets must have one row a position, over one vocabulary"
        )
    if not 1 <= extra <= targets.vocab_size - targets.k:
        raise TargetsError(f"can't add {extra} entries to {targets.k} of {targets.vocab_size}")
    wide = targets.logprobs.dtype
    unlisted_NV = reference_logits.to(wide).scatter(1, targets.ids, -math.inf)
    ids_NU = student_top_ids(unlisted_NV, extra)
    teacher_NV = teacher_logits.to(wide)
    logprobs_NU = teacher_NV.gather(1, ids_NU) - teacher_NV.logsumexp(1, keepdim=True)
    ids_NK = torch.cat([targets.ids, ids_NU], 1)
    logprobs_NK, order_NK = torch.cat([targets.logprobs, logprobs_NU], 1).sort(dim=1, descending=True, stable=True)
    ids_NK = ids_NK.gather(1, order_NK)
    rest_N = teacher_NV.scatter(1, ids_NK, -math.inf).logsumexp(1) - teacher_NV.logsumexp(1)
    return replace(targets, ids=ids_NK, logprobs=logprobs_NK, residual_logprob=rest_N)
