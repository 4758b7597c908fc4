"""How close a student is to the targets, per token: for training logs and evaluation. No gradient.

Shape legend: N positions, V words, K entries in the targets, k ids compared.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from logitcache.losses.base import IGNORED_LABEL, check_shapes
from logitcache.losses.residual_kl import ResidualKL
from logitcache.losses.student_top import student_top_ids
from logitcache.losses.tail import look_up
from logitcache.topk import TopK


@torch.no_grad()
def kl_with_residual(student_logits: Tensor, targets: TopK) -> Tensor:
    """KL(teacher ‖ student) ``[N]`` in nats, with the ids that aren't listed as one event; at most the full KL."""
    return ResidualKL()(student_logits, targets)


@torch.no_grad()
def overlap_at_k(student_logits: Tensor, targets: TopK, k: int = 8) -> Tensor:
    """|student's top k ∩ teacher's top k| / k ``[N]``, the BiLD paper's ranking metric. k is at most K."""
    check_shapes(student_logits, targets, None)
    k = min(k, targets.k)
    _, listed_Nk = look_up(targets.top(k), student_top_ids(student_logits, k))
    return listed_Nk.float().mean(1)


@torch.no_grad()
def s_ld_coverage(student_logits: Tensor, targets: TopK, k: int = 8) -> Tensor:
    """Share ``[N]`` of the student's top k that the targets hold; the rest of s-LD works on filled-in values."""
    check_shapes(student_logits, targets, None)
    _, listed_Nk = look_up(targets, student_top_ids(student_logits, min(k, student_logits.shape[1])))
    return listed_Nk.float().mean(1)


@torch.no_grad()
def top1_agreement(student_logits: Tensor, targets: TopK) -> Tensor:
    """1 where student and teacher have the same most probable id, else 0 ``[N]``."""
    check_shapes(student_logits, targets, None)
    return (student_logits.argmax(1) == targets.ids[:, 0]).float()


@torch.no_grad()
def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """−log p_s(label) ``[N]`` in nats; NaN where the label is -100, so that it can't be averaged by mistake."""
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    values_N = functional.cross_entropy(student_logits.to(wide), labels, reduction="none", ignore_index=IGNORED_LABEL)
    return torch.where(labels == IGNORED_LABEL, torch.nan, values_N)
