"""Chunks of tokens through the output layer and the loss, with gradients made on the way.

A sparse loss leaves, per position, C ids and the gradient at each; backward is then a gather and a scatter of C rows of
the weight. A dense loss has a gradient for every logit; it is multiplied out chunk by chunk in the forward pass, while
the chunk's logits are there. Either way the largest temporary is one chunk's ``[B, V]``.

Shape legend: N positions, D hidden width, V ids of the vocabulary, C ids a sparse loss reads, B positions of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from logitcache.losses.base import Loss, SparseLoss
from logitcache.losses.sparse_rows import rows_times, scatter_rows
from logitcache.models.finish import UNCHANGED, Finish
from logitcache.targets.topk import TopK

# Logits of one chunk, in bytes: large enough that the matrix product runs at full speed, small beside the weight.
CHUNK_BYTES = 64 << 20
_LEAST_CHUNK = 128


@dataclass
class Tally:
    """Sums over the positions, detached: each part's loss, and the coverage of s-LD's ids."""

    parts: list[Tensor] = field(default_factory=list)
    coverage: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """All that the autograd function needs beside its three tensors."""

    parts: tuple[tuple[float, Loss], ...]
    targets: TopK
    labels: Tensor | None
    scale: float
    tally: Tally
    finish: Finish = UNCHANGED

    @property
    def is_sparse(self) -> bool:
        return all(isinstance(loss, SparseLoss) for _, loss in self.parts)


def fused_loss(job: Job, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """``scale · Σ loss`` over the positions: a scalar with gradients for hidden, weight and bias."""
    tracked = [tensor for tensor in (hidden_ND, weight_VD, bias_V) if tensor is not None]
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tracked)
    function = _SparseHead if job.is_sparse else _DenseHead
    with torch.autocast(hidden_ND.device.type, enabled=False):
        value: Tensor = function.apply(  # type: ignore[no-untyped-call]
            hidden_ND, weight_VD, bias_V, job, needs_gradient
        )
        return value


class _SparseHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        job: Job,
        needs_gradient: bool,
    ) -> Tensor:
        total, ids, gradients = _zero(hidden_ND), [], []
        for rows, logits_BV in _chunks(hidden_ND, weight_VD, bias_V, job.finish):
            targets = job.targets[rows]
            for index, (factor, loss) in enumerate(job.parts):
                assert isinstance(loss, SparseLoss)
                selection = loss.select(logits_BV, targets)
                student_BC = logits_BV.gather(1, selection.ids_NC).requires_grad_(needs_gradient)
                with torch.set_grad_enabled(needs_gradient):
                    part = loss.at(student_BC, selection).sum()
                total += factor * job.scale * part.detach()
                _add(job.tally, index, part, selection.coverage_N)
                if needs_gradient:
                    (gradient_BC,) = torch.autograd.grad(part, student_BC)
                    gradients.append(job.finish.slope(gradient_BC * (factor * job.scale), student_BC.detach()))
                    ids.append(selection.ids_NC)
        if needs_gradient:
            ctx.save_for_backward(hidden_ND, weight_VD, _join(ids, len(job.parts)), _join(gradients, len(job.parts)))
            ctx.bias_dtype = None if bias_V is None else bias_V.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, ids_NC, gradient_NC = ctx.saved_tensors
        gradient_NC = gradient_NC * upstream
        hidden = weight = bias = None
        if ctx.needs_input_grad[0]:
            hidden = rows_times(weight_VD, ids_NC, gradient_NC).to(hidden_ND.dtype)
        if ctx.needs_input_grad[1]:
            weight = scatter_rows(hidden_ND, ids_NC, gradient_NC, weight_VD)
        if ctx.needs_input_grad[2]:
            bias_V = gradient_NC.new_zeros(weight_VD.shape[0])
            bias = bias_V.index_add_(0, ids_NC.flatten(), gradient_NC.flatten()).to(ctx.bias_dtype)
        return hidden, weight, bias, None, None


class _DenseHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        job: Job,
        needs_gradient: bool,
    ) -> Tensor:
        ctx.wants = [needs_gradient and ctx.needs_input_grad[i] for i in range(3)]
        ctx.job = job
        total, ctx.gradients = _dense_pass(hidden_ND, weight_VD, bias_V, job, ctx.wants)
        if needs_gradient:
            ctx.save_for_backward(hidden_ND, weight_VD, bias_V)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        leaves = hidden_ND, weight_VD, bias_V = ctx.saved_tensors
        # Handed over, not kept: a scaled copy would mean two [V, D] at once. Who asks again waits again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = _dense_pass(hidden_ND, weight_VD, bias_V, replace(ctx.job, tally=Tally()), ctx.wants)
        scaled = (
            None if gradient is None else gradient.mul_(upstream).to(leaf.dtype)
            for gradient, leaf in zip(gradients, leaves, strict=True)
        )
        return (*scaled, None, None)


def _dense_pass(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: Job, wants: list[bool]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The loss, and its gradients for hidden, weight and bias, each only if wanted."""
    total, wide = _zero(hidden_ND), _wide(hidden_ND)
    hidden_grad = torch.empty_like(hidden_ND, dtype=wide) if wants[0] else None
    # Sums over chunks are kept in float32: adding them up in bfloat16 would lose the small ones.
    weight_grad = torch.zeros_like(weight_VD, dtype=wide) if wants[1] else None
    bias_grad = torch.zeros_like(bias_V, dtype=wide) if wants[2] and bias_V is not None else None
    weight_wide = weight_VD.detach().to(wide) if wants[0] else None
    for rows, logits_BV in _chunks(hidden_ND, weight_VD, bias_V, job.finish):
        logits_BV.requires_grad_(any(wants))
        with torch.set_grad_enabled(any(wants)):
            value = chunk_loss(logits_BV, rows, job)
        total += value.detach()
        if not any(wants):
            continue
        (gradient_BV,) = torch.autograd.grad(value, logits_BV)
        gradient_BV = job.finish.slope(gradient_BV, logits_BV.detach())
        if hidden_grad is not None and weight_wide is not None:
            torch.mm(gradient_BV, weight_wide, out=hidden_grad[rows])
        if weight_grad is not None:
            weight_grad.addmm_(gradient_BV.T, hidden_ND[rows].detach().to(wide))
        if bias_grad is not None:
            bias_grad += gradient_BV.sum(0)
    return total, (hidden_grad, weight_grad, bias_grad)


def chunk_loss(logits_BV: Tensor, rows: slice, job: Job) -> Tensor:
    """``scale · Σ loss`` of logits that exist, with their gradient; ``rows`` are theirs in the targets and labels."""
    targets, labels_B = job.targets[rows], None if job.labels is None else job.labels[rows]
    value = _zero(logits_BV)
    for index, (factor, loss) in enumerate(job.parts):
        if isinstance(loss, SparseLoss):
            selection = loss.select(logits_BV.detach(), targets)
            part, coverage = loss.at(logits_BV.gather(1, selection.ids_NC), selection).sum(), selection.coverage_N
        else:
            part, coverage = loss.per_token(logits_BV, targets, labels_B).sum(), None
        _add(job.tally, index, part, coverage)
        value = value + factor * job.scale * part
    return value


def _chunks(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, finish: Finish
) -> Iterator[tuple[slice, Tensor]]:
    """Each chunk's rows and logits ``[B, V]``, float32 or float64. The memory of one chunk serves the next as well."""
    wide = _wide(hidden_ND)
    positions, vocab_size = hidden_ND.shape[0], weight_VD.shape[0]
    size = min(positions, max(_LEAST_CHUNK, CHUNK_BYTES // (4 * vocab_size)))
    weight_VD = weight_VD.detach()
    half_on_gpu = weight_VD.is_cuda and hidden_ND.dtype == weight_VD.dtype != wide
    if not half_on_gpu:
        weight_VD = weight_VD.to(wide)
    bias_V = None if bias_V is None else bias_V.detach().to(wide)
    buffer_BV = torch.empty(size, vocab_size, dtype=wide, device=hidden_ND.device)
    for start in range(0, positions, size):
        rows = slice(start, min(start + size, positions))
        logits_BV = buffer_BV.detach()[: rows.stop - start]
        hidden_BD = hidden_ND[rows].detach()
        if half_on_gpu:
            # Half-precision operands with a float32 result: what tensor cores accumulate in anyway.
            torch.mm(hidden_BD, weight_VD.T, out_dtype=wide, out=logits_BV)
        else:
            torch.mm(hidden_BD.to(wide), weight_VD.T, out=logits_BV)
        if bias_V is not None:
            logits_BV += bias_V
        finish.in_place(logits_BV)
        yield rows, logits_BV


def _join(pieces: list[Tensor], parts: int) -> Tensor:
    """Pieces in order of (chunk, part) to one ``[N, C]``."""
    rows = [torch.cat(pieces[start : start + parts], 1) for start in range(0, len(pieces), parts)]
    return torch.cat(rows)


def _add(tally: Tally, index: int, part: Tensor, coverage_N: Tensor | None) -> None:
    if index == len(tally.parts):
        tally.parts.append(part.detach())
    else:
        tally.parts[index] = tally.parts[index] + part.detach()
    if coverage_N is not None:
        total = coverage_N.sum()
        tally.coverage = total if tally.coverage is None else tally.coverage + total


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _zero(tensor: Tensor) -> Tensor:
    return torch.zeros((), dtype=_wide(tensor), device=tensor.device)
