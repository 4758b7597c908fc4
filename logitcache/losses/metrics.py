"""Measures per token of how close a student is to the targets, for training logs and evaluation; no gradient.

Shape legend: N positions, V ids of the vocabulary, K entries in the targets, k ids compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from logitcache.losses.base import IGNORED_LABEL, check_shapes
from logitcache.losses.residual_kl import ResidualKL
from logitcache.losses.tail import look_up
from logitcache.targets.largest import largest_ids
from logitcache.targets.topk import TopK

_ENOUGH_COVERAGE = 0.9


@torch.no_grad()
def kl_with_residual(student_logits: Tensor, targets: TopK) -> Tensor:
    """KL(teacher ‖ student) ``[N]`` in nats, with all ids that aren't listed as one event; at most the full KL."""
    return ResidualKL()(student_logits, targets)


@torch.no_grad()
def overlap_at_k(student_logits: Tensor, targets: TopK, k: int = 8) -> Tensor:
    """``|student's top k ∩ teacher's top k|`` / k ``[N]``, the BiLD paper's ranking metric. k is at most K.

    Tail samples and candidates don't count.
    """
    check_shapes(student_logits, targets, None)
    k = min(k, targets.ranked)
    _, listed_Nk = look_up(targets.top(k), largest_ids(student_logits, k))
    return listed_Nk.float().mean(1)


@torch.no_grad()
def s_ld_coverage(student_logits: Tensor, targets: TopK, k: int = 8) -> Tensor:
    """Share ``[N]`` of the student's top k that the targets hold; s-LD needs substitute values for the rest."""
    check_shapes(student_logits, targets, None)
    _, listed_Nk = look_up(targets, largest_ids(student_logits, min(k, student_logits.shape[1])))
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


def coverage_advice(coverage: float, targets_k: int, k: int = 8, *, audited: bool = False) -> str | None:
    """A warning in one line if too many of the student's top k are missing from the targets, else None.

    The error of s-LD depends on the missing share: with a coverage below 0.9 the cosine between its gradient and the
    exact one falls below about 0.96 (see docs/explanation/s-ld-from-a-cache.md). Twice the K reduces the missing share
    by about 0.3 of it, and by more if the student is close to the teacher. The K in the advice is the one that reaches
    a coverage of 0.9, at most eight times the present K. Audit rows don't change the cache, so they are advised first,
    except if they are used already (``audited``).
    """
    if coverage >= _ENOUGH_COVERAGE:
        return None
    doublings = math.ceil(math.log((1 - _ENOUGH_COVERAGE) / (1 - coverage)) / math.log(0.7))
    wanted = targets_k * 2 ** min(doublings, 3)
    audit = "" if audited else "set its fill by audit rows (--audit), "
    return (
        f"only {coverage:.0%} of the student's top {k} ids are among the {targets_k} that the cache holds, and s-LD "
        f"fills in the rest: {audit}dump with --reference STUDENT or --top-k {wanted}, or use t_ld until the student "
        "is closer"
    )
