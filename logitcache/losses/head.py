"""The fused head: hidden states and the head's weight go in, the mean loss comes out, and [N, V] never exists.

Shape legend: N positions, D hidden width, V words, C ids a sparse loss reads, B positions of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from logitcache.losses.base import IGNORED_LABEL, Loss, check_rows
from logitcache.losses.registry import resolve
from logitcache.topk import TopK


def linear_loss(
    name: str | Loss,
    hidden: Tensor,
    weight: Tensor,
    targets: TopK,
    *,
    bias: Tensor | None = None,
    labels: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    **params: Any,
) -> Tensor:
    """The loss of ``softcap(logit_scale · (hidden @ weight.T + bias))``, without ever holding all logits.

    Args:
        name: a loss's name, with its settings in ``params``; or a line of text as ``parse`` reads; or a loss.
        hidden: ``[N, D]``, the last hidden states at the N positions.
        weight, bias: the head, ``[V, D]`` and ``[V]``.
        targets: N rows.
        labels: ``[N]`` int64. Positions labelled -100 are left out, cost nothing, and don't count in the mean.
        softcap: c > 0 makes logits ``c · tanh(logits / c)`` (Gemma 2 and 3).
        logit_scale: a factor on the logits, before the cap (Cohere, Granite).
        reduction: mean or sum over the positions that aren't left out.

    Returns:
        A scalar, float32 (float64 for float64 input). 0 if every position is left out.

    Raises:
        ConfigError: no such loss or setting.
        TargetsError: shapes don't fit, or the targets lack something the loss needs.
    """
    loss = resolve(name, **params)
    head = LinearHead(weight, bias, softcap, logit_scale)
    return head_loss(loss, hidden, head, targets, labels=labels, reduction=reduction)[0]


@dataclass(frozen=True, eq=False)
class LinearHead:
    """An output layer: logits = softcap(logit_scale · (hidden @ weight.T + bias)); softcap(x) = c tanh(x / c)."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` in float32 (float64 for float64), from hidden states ``[..., D]``."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logits = hidden.to(wide) @ self.weight.to(wide).T
        if self.bias is not None:
            logits = logits + self.bias.to(wide)
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


@dataclass
class HeadStats:
    """What a step saw, for the log; detached tensors, so that reading them is the only synchronisation.

    Attributes:
        tokens: positions that counted.
        parts: mean of each weighted part of a mix, unweighted, by name.
        coverage: share of the student's top k that the targets held, or None if the loss doesn't look for them.
    """

    tokens: int
    parts: dict[str, Tensor] = field(default_factory=dict)
    coverage: Tensor | None = None


def head_loss(
    loss: Loss,
    hidden: Tensor,
    head: LinearHead,
    targets: TopK,
    *,
    labels: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, HeadStats]:
    """``linear_loss`` for a head and a loss that are built already, with what it saw on the way."""
    check_rows(hidden.shape[0], head.weight.shape[0], targets, labels)
    loss.check_inputs(targets, labels)
    if labels is not None:
        keep = labels != IGNORED_LABEL
        if not bool(keep.all()):
            hidden, targets, labels = hidden[keep], targets[keep], labels[keep]
    if len(targets) == 0:
        return hidden.sum() * 0, HeadStats(0)
    values = loss(head.logits(hidden), targets, labels)
    return (values.mean() if reduction == "mean" else values.sum()), HeadStats(len(targets))
