"""Run chunks of tokens through the output layer and the loss, and compute the gradients in the forward pass.

A sparse loss gives, for each position, C ids and the gradient at each; the backward pass is then a gather and a scatter
of C rows of the weight. A dense loss has a gradient for every logit; it is multiplied with weight and hidden states
chunk by chunk in the forward pass, while the chunk's logits are in memory. In both cases the largest temporary tensor
is ``[B, V]`` of one chunk.

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
from logitcache.models.product import add_product, gradient_operand, operand, product, wide
from logitcache.targets.topk import TopK
from logitcache.utils.device import DEVICES, Devices

# Bytes of one chunk's logits: enough for a matrix product at full speed, and little compared with the weight.
CHUNK_BYTES = 64 << 20
# A GPU wants one to two thousand rows, if they take no more than this part of its memory. (All its memory counts, not
# what is free now: otherwise two runs of the same job could have different chunks and differ in their last bits.)
_GPU_SHARE = 1 / 64
_LEAST_ROWS, _MOST_ROWS = 128, 2048
# float16 has no values between 0 and 6e-8, and most gradients of a mean are smaller: they are multiplied by this, as
# those of a sum, before they are rounded. A single one may then be as large as 4,000.
_FP16_FACTOR = 16.0


@dataclass
class Tally:
    """Sums over the positions, detached: each part's loss, and the coverage of s-LD's ids."""

    parts: list[Tensor] = field(default_factory=list)
    coverage: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that the autograd function needs besides its three tensors. Products read them in ``dtype``."""

    parts: tuple[tuple[float, Loss], ...]
    targets: TopK
    labels: Tensor | None
    scale: float
    tally: Tally
    dtype: torch.dtype
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
        total, ids, gradients = _zero(hidden_ND, job), [], []
        for rows, logits_BV in _chunks(hidden_ND, weight_VD, bias_V, job):
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
        # The gradients are given away and not kept: a scaled copy would need a second [V, D]. A second backward pass
        # computes them again.
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
    total, dtype = _zero(hidden_ND, job), wide(job.dtype)
    hidden_grad = torch.empty_like(hidden_ND, dtype=dtype) if wants[0] else None
    # Sums over chunks are kept in float32: adding them up in bfloat16 would lose the small ones.
    weight_grad = torch.zeros_like(weight_VD, dtype=dtype) if wants[1] else None
    bias_grad = torch.zeros_like(bias_V, dtype=dtype) if wants[2] and bias_V is not None else None
    read_VD = operand(weight_VD, job.dtype) if wants[0] else None
    factor = _FP16_FACTOR / job.scale if job.dtype == torch.float16 else 1.0
    for rows, logits_BV in _chunks(hidden_ND, weight_VD, bias_V, job):
        logits_BV.requires_grad_(any(wants))
        with torch.set_grad_enabled(any(wants)):
            value = chunk_loss(logits_BV, rows, job)
        total += value.detach()
        if not any(wants):
            continue
        (gradient_BV,) = torch.autograd.grad(value, logits_BV)
        gradient_BV = job.finish.slope(gradient_BV, logits_BV.detach())
        if bias_grad is not None:
            bias_grad += gradient_BV.sum(0)
        read_BV = gradient_operand(gradient_BV if factor == 1 else gradient_BV * factor, job.dtype)
        if hidden_grad is not None and read_VD is not None:
            product(read_BV, read_VD, out_MP=hidden_grad[rows])
        if weight_grad is not None:
            add_product(weight_grad, read_BV.T, operand(hidden_ND[rows], job.dtype))
    for gradient in (hidden_grad, weight_grad):
        if gradient is not None and factor != 1:
            gradient /= factor
    return total, (hidden_grad, weight_grad, bias_grad)


def chunk_loss(logits_BV: Tensor, rows: slice, job: Job) -> Tensor:
    """``scale · Σ loss`` of logits in memory, with gradient; ``rows`` selects their rows of the targets and labels."""
    targets, labels_B = job.targets[rows], None if job.labels is None else job.labels[rows]
    value = _zero(logits_BV, job)
    for index, (factor, loss) in enumerate(job.parts):
        if isinstance(loss, SparseLoss):
            selection = loss.select(logits_BV.detach(), targets)
            part, coverage = loss.at(logits_BV.gather(1, selection.ids_NC), selection).sum(), selection.coverage_N
        else:
            part, coverage = loss.per_token(logits_BV, targets, labels_B).sum(), None
        _add(job.tally, index, part, coverage)
        value = value + factor * job.scale * part
    return value


def _chunks(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: Job) -> Iterator[tuple[slice, Tensor]]:
    """Each chunk's rows and logits ``[B, V]``, float32 or float64. The memory of one chunk serves the next as well."""
    positions, vocab_size = hidden_ND.shape[0], weight_VD.shape[0]
    size = min(positions, _chunk_rows(vocab_size, hidden_ND.device))
    weight_DV, dtype = operand(weight_VD, job.dtype).T, wide(job.dtype)
    bias_V = None if bias_V is None else bias_V.detach().to(dtype)
    buffer_BV = torch.empty(size, vocab_size, dtype=dtype, device=hidden_ND.device)
    for start in range(0, positions, size):
        rows = slice(start, min(start + size, positions))
        logits_BV = buffer_BV.detach()[: rows.stop - start]
        product(operand(hidden_ND[rows], job.dtype), weight_DV, out_MP=logits_BV)
        if bias_V is not None:
            logits_BV += bias_V
        job.finish.in_place(logits_BV)
        yield rows, logits_BV


def _chunk_rows(vocab_size: int, device: torch.device, devices: Devices = DEVICES) -> int:
    return chunk_rows(vocab_size, devices.total_bytes(device))


def chunk_rows(vocab_size: int, total_bytes: int | None) -> int:
    """Positions of one chunk on a device with this much memory; None for the CPU."""
    if total_bytes is None:
        return max(_LEAST_ROWS, CHUNK_BYTES // (4 * vocab_size))
    return min(_MOST_ROWS, max(_LEAST_ROWS, int(total_bytes * _GPU_SHARE) // (4 * vocab_size)))


def _join(pieces: list[Tensor], parts: int) -> Tensor:
    """Join pieces, which are in order of (chunk, part), to one ``[N, C]``."""
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


def _zero(tensor: Tensor, job: Job) -> Tensor:
    return torch.zeros((), dtype=wide(job.dtype), device=tensor.device)
