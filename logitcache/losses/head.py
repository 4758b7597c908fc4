"""The fused head: hidden states and the head's weight go in, the mean loss comes out, and [N, V] never exists.

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
from logitcache.targets.topk import TopK

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _as_it_is(function: _Function) -> _Function:
    """Under ``torch.compile`` what is around the head compiles, and the head doesn't.

    It looks at values to check them, and its chunks come in several sizes, each of which would be compiled again.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        # Not when this file is imported: the compiler takes a second or two to load, and few programs use it.
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return function(*args, **kwargs)

    return cast(_Function, run)


@_as_it_is
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

    Equals ``get(name, **params)`` on those logits, averaged, in value and in gradients. Under ``torch.compile`` it runs
    as it is, and what is around it compiles. Losses that read a few ids
    of each position (bild, t_ld, s_ld, top_kl, and mixes of them) cost about a third of an ordinary head with
    cross-entropy; the others about as much, in little memory.

    Args:
        name: a loss's name, with its settings in ``params``; or a line of text as ``parse`` reads; or a loss.
        hidden: ``[N, D]``, the last hidden states at the N positions, any floating dtype.
        weight, bias: the head, ``[V, D]`` and ``[V]``. Half precision stays as it is; arithmetic is in float32.
        targets: N rows.
        labels: ``[N]`` int64. Positions labelled -100 are left out, cost nothing, and don't count in the mean.
        softcap: c > 0 makes logits ``c · tanh(logits / c)`` (Gemma 2 and 3).
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
    """What a step saw, for the log: detached tensors, so that a GPU need not be waited for.

    Attributes:
        tokens: the positions that counted.
        parts: mean over them of each part of a mix, by name, before its weight.
        coverage: share of the student's top k that the targets held, or None if the loss doesn't look for them.
    """

    tokens: int
    parts: dict[str, Tensor] = field(default_factory=dict)
    coverage: Tensor | None = None


@_as_it_is
def head_loss(
    loss: Loss,
    hidden: Tensor,
    weight: Tensor,
    targets: TopK,
    *,
    bias: Tensor | None = None,
    finish: Finish = UNCHANGED,
    labels: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, HeadStats]:
    """``linear_loss`` for a loss that is built already, and what it saw on the way."""
    _check(hidden, weight, bias, finish, reduction)
    check_rows(hidden.shape[0], weight.shape[0], targets, labels)
    check_labels(loss, labels, weight.shape[0])
    loss.check_inputs(targets, labels)
    hidden, targets, labels = _kept(hidden, targets, labels)
    if len(targets) == 0:
        return _nothing(hidden, weight, bias), HeadStats(0)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    scale = 1 / len(targets) if reduction == "mean" else 1.0
    job = Job(parts_of(loss), targets.in_dtype(wide), labels, scale, Tally(), finish)
    value = fused_loss(job, hidden, weight, bias)
    return value, _stats(job, len(targets))


def dense_loss(
    loss: Loss,
    logits: Tensor,
    targets: TopK,
    *,
    labels: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, HeadStats]:
    """The same from logits ``[N, V]`` that exist already, for a model whose output layer isn't linear."""
    check_shapes(logits, targets, labels)
    check_labels(loss, labels, logits.shape[1])
    loss.check_inputs(targets, labels)
    logits, targets, labels = _kept(logits, targets, labels)
    if len(targets) == 0:
        return _nothing(logits), HeadStats(0)
    wide = torch.promote_types(logits.dtype, torch.float32)
    scale = 1 / len(targets) if reduction == "mean" else 1.0
    job = Job(parts_of(loss), targets.in_dtype(wide), labels, scale, Tally())
    value = chunk_loss(logits.to(wide), slice(None), job)
    return value, _stats(job, len(targets))


def _kept(rows: Tensor, targets: TopK, labels: Tensor | None) -> tuple[Tensor, TopK, Tensor | None]:
    """Without the positions that are labelled -100."""
    if labels is None:
        return rows, targets, None
    keep = labels != IGNORED_LABEL
    return (rows, targets, labels) if bool(keep.all()) else (rows[keep], targets[keep], labels[keep])


def _stats(job: Job, tokens: int) -> HeadStats:
    stats, losses = HeadStats(tokens), [loss for _, loss in job.parts]
    for loss, total in zip(losses, job.tally.parts, strict=True):
        # The same loss may be in a mix twice, with other settings.
        twins = sum(name.split("#")[0] == loss.name for name in stats.parts)
        stats.parts[f"{loss.name}#{twins + 1}" if twins else loss.name] = total / tokens
    if job.tally.coverage is not None:
        stats.coverage = job.tally.coverage / (tokens * sum(isinstance(loss, SLD) for loss in losses))
    return stats


def _nothing(rows: Tensor, *others: Tensor | None) -> Tensor:
    """0, connected to everything that may want a gradient: a step without targets must not stop a parallel run."""
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
