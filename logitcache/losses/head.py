"""The fused head: it computes the mean loss from hidden states and the head's weight, without ``[N, V]`` in memory.

Shape legend: N positions, D hidden width, V ids of the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from logitcache.errors import ConfigError, TargetsError
from logitcache.losses.base import IGNORED_LABEL, Loss, check_labels, check_positive, check_rows, check_shapes
from logitcache.losses.bild import SLD
from logitcache.losses.fused import Job, Tally, chunk_loss, fused_loss
from logitcache.losses.mix import parts_of
from logitcache.losses.registry import resolve
from logitcache.models.finish import UNCHANGED, Finish
from logitcache.models.product import product_dtype, wide
from logitcache.targets.topk import TopK

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _uncompiled(function: _Function) -> _Function:
    """Run a function of the head uncompiled under ``torch.compile``; the code around it is compiled.

    The head checks values, which compiled code can't, and its chunks have several sizes, each compiled anew.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        # Not when this file is imported: the compiler takes a second or two to import, and few programs use it.
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return function(*args, **kwargs)

    return cast(_Function, run)


@_uncompiled
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
    """The loss of the logits ``softcap(logit_scale · (hidden @ weight.T + bias))``, without all logits in memory.

    It equals the mean of ``get(name, **params)`` on those logits, in value and in gradients. Under ``torch.compile`` it
    is not compiled, but the code around it is. Losses that read a few ids of each position (bild, t_ld, s_ld, top_kl,
    and mixes of them) take about a third of the time of an ordinary head with cross-entropy; the others take about the
    same time, in little memory.

    Args:
        name: a loss's name, with its settings in ``params``; or a line of text for ``parse``; or a loss.
        hidden: ``[N, D]``, the last hidden states at the N positions, any floating dtype.
        weight, bias: the head, ``[V, D]`` and ``[V]``. They may be in half precision; sums are in float32.
        targets: N rows.
        labels: ``[N]`` int64. Positions labelled -100 are left out of the loss and of its mean.
        softcap: c > 0 turns logits into ``c · tanh(logits / c)`` (Gemma 2 and 3).
        logit_scale: a factor on the logits, before the cap (Cohere; Granite's ``1 / logits_scaling``).
        reduction: mean or sum over the positions that aren't left out.

    Returns:
        A scalar, float32 (float64 for float64 input). 0, with gradients of 0, if every position is left out.

    Raises:
        ConfigError: no such loss or setting, or a setting's value isn't allowed.
        TargetsError: shapes don't fit, or the targets lack something the loss needs.
    """
    loss, finish = resolve(name, **params), Finish(logit_scale, softcap)
    return head_loss(loss, hidden, weight, targets, bias=bias, finish=finish, labels=labels, reduction=reduction)[0]


@dataclass
class HeadStats:
    """Numbers of a step for the log: detached tensors, so that the CPU doesn't wait for the GPU.

    Attributes:
        tokens: number of positions that weren't left out.
        parts: mean of each part of a mix over them, by name, without its weight.
        coverage: share of the student's top k that the targets hold, or None if the loss doesn't use the top k.
    """

    tokens: int
    parts: dict[str, Tensor] = field(default_factory=dict)
    coverage: Tensor | None = None


@_uncompiled
def head_loss(
    loss: Loss,
    hidden: Tensor,
    weight: Tensor,
    targets: TopK,
    *,
    bias: Tensor | None = None,
    finish: Finish = UNCHANGED,
    labels: Tensor | None = None,
    label_range: tuple[int, int] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, HeadStats]:
    """``linear_loss`` for a loss object; it also returns numbers for the log.

    Args:
        label_range: the least and the greatest label. Without it a GPU has to report whether any is -100, and the host
            waits for that.

    Raises:
        ConfigError: a setting's value isn't allowed.
        TargetsError: shapes don't fit, or the targets lack something that the loss needs.
    """
    _check(hidden, weight, bias, finish, reduction)
    check_rows(hidden.shape[0], weight.shape[0], targets, labels)
    check_labels(loss, labels, weight.shape[0], label_range)
    loss.check_inputs(targets, labels)
    hidden, targets, labels = _without_ignored(hidden, targets, labels, label_range)
    if len(targets) == 0:
        return _zero_loss(hidden, weight, bias), HeadStats(0)
    scale = 1 / len(targets) if reduction == "mean" else 1.0
    dtype = product_dtype(hidden, weight)
    job = Job(parts_of(loss), targets.in_dtype(wide(dtype)), labels, scale, Tally(), dtype, finish)
    value = fused_loss(job, hidden, weight, bias)
    return value, _stats(job, len(targets))


def dense_loss(
    loss: Loss,
    logits: Tensor,
    targets: TopK,
    *,
    labels: Tensor | None = None,
    label_range: tuple[int, int] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, HeadStats]:
    """The same from logits ``[N, V]``, for a model whose output layer isn't linear.

    Raises:
        TargetsError: shapes don't fit, or the targets lack something that the loss needs.
    """
    check_shapes(logits, targets, labels)
    check_labels(loss, labels, logits.shape[1], label_range)
    loss.check_inputs(targets, labels)
    logits, targets, labels = _without_ignored(logits, targets, labels, label_range)
    if len(targets) == 0:
        return _zero_loss(logits), HeadStats(0)
    dtype = wide(logits.dtype)
    scale = 1 / len(targets) if reduction == "mean" else 1.0
    job = Job(parts_of(loss), targets.in_dtype(dtype), labels, scale, Tally(), dtype)
    value = chunk_loss(logits.to(dtype), slice(None), job)
    return value, _stats(job, len(targets))


def _without_ignored(
    rows: Tensor, targets: TopK, labels: Tensor | None, label_range: tuple[int, int] | None
) -> tuple[Tensor, TopK, Tensor | None]:
    """Leave out the positions that are labelled -100."""
    if labels is None:
        return rows, targets, None
    if label_range is not None and label_range[0] >= 0:
        return rows, targets, labels
    keep = labels != IGNORED_LABEL
    return (rows, targets, labels) if bool(keep.all()) else (rows[keep], targets[keep], labels[keep])


def _stats(job: Job, tokens: int) -> HeadStats:
    stats, losses = HeadStats(tokens), [loss for _, loss in job.parts]
    for loss, total in zip(losses, job.tally.parts, strict=True):
        # A mix may hold the same loss twice, with other settings.
        twins = sum(name.split("#")[0] == loss.name for name in stats.parts)
        stats.parts[f"{loss.name}#{twins + 1}" if twins else loss.name] = total / tokens
    if job.tally.coverage is not None:
        stats.coverage = job.tally.coverage / (tokens * sum(isinstance(loss, SLD) for loss in losses))
    return stats


def _zero_loss(rows: Tensor, *others: Tensor | None) -> Tensor:
    """0, with gradients of 0 for all tensors: in a parallel run, every rank must have gradients in every step."""
    zero = rows.sum().to(torch.promote_types(rows.dtype, torch.float32)) * 0
    for other in others:
        if other is not None:
            zero = zero + other[:0].sum().to(zero.dtype)
    return zero


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"reduction = {reduction!r} is not allowed; it must be mean or sum")
    if finish.softcap is not None:
        check_positive("linear_loss", softcap=finish.softcap)
    check_positive("linear_loss", logit_scale=finish.logit_scale)
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise TargetsError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [N, D] and [V, D]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise TargetsError(f"bias {tuple(bias.shape)} must be [V] = [{weight.shape[0]}]")
