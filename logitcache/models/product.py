"""Products of half-precision matrices with float32 results; tensor cores add up in float32 anyway.

Shape legend: M, N, P rows and columns of the operands.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Kinds of devices with such products. On other devices the operands are widened.
NATIVE = frozenset({"cuda"})
# Of a weight's rows that are widened at a time elsewhere.
_WIDENED_BYTES = 64 << 20


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a product's result: float32, or float64 for float64 operands."""
    return torch.promote_types(dtype, torch.float32)


def product_dtype(*operands: Tensor) -> torch.dtype:
    """The dtype of a product's operands: autocast's if autocast is on, else the widest of the operands' dtypes."""
    kind = operands[0].device.type
    if torch.is_autocast_enabled(kind) and wide(operands[0].dtype) == torch.float32:
        return torch.get_autocast_dtype(kind)
    dtype = operands[0].dtype
    for operand in operands[1:]:
        dtype = torch.promote_types(dtype, operand.dtype)
    return dtype


def operand(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix for :func:`product`: rounded to ``dtype``, and widened again if the device needs it."""
    rounded = matrix.detach().to(dtype)
    return rounded if reads_half(rounded) else rounded.to(wide(dtype))


def gradient_operand(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient for :func:`product`: rounded to ``dtype`` only if the device needs it."""
    return gradient.to(dtype) if gradient.device.type in NATIVE else gradient


def product(left_MN: Tensor, right_NP: Tensor, *, out_MP: Tensor | None = None) -> Tensor:
    """``left @ right`` with a result of :func:`wide` dtype; both are made by :func:`operand`, with the same dtype."""
    if reads_half(left_MN):
        return torch.mm(left_MN, right_NP, out_dtype=wide(left_MN.dtype), out=out_MP)
    return torch.mm(left_MN, right_NP, out=out_MP)


def wide_product(left_MN: Tensor, right_PN: Tensor) -> Tensor:
    """``left @ right.T`` in float32, ``[M, P]``. ``right``, a weight in any dtype, is never copied as a whole.

    ``left`` is moved to the weight's device, and rounded to its dtype.
    """
    right_PN, dtype = right_PN.detach(), right_PN.dtype
    left_MN = operand(left_MN.to(right_PN.device), dtype)
    if reads_half(right_PN) or dtype == wide(dtype):
        return product(left_MN, right_PN.T)
    result_MP = torch.empty(len(left_MN), len(right_PN), dtype=wide(dtype), device=right_PN.device)
    rows = max(1, _WIDENED_BYTES // (4 * right_PN.shape[1]))
    for start in range(0, len(right_PN), rows):
        some = slice(start, start + rows)
        product(left_MN, operand(right_PN[some], dtype).T, out_MP=result_MP[:, some])
    return result_MP


def add_product(total_MP: Tensor, left_MN: Tensor, right_NP: Tensor) -> None:
    """Add ``left @ right`` to ``total``, which has the :func:`wide` dtype, in its memory."""
    if reads_half(left_MN):
        torch.addmm(total_MP, left_MN, right_NP, out_dtype=total_MP.dtype, out=total_MP)
    else:
        total_MP.addmm_(left_MN, right_NP)


def reads_half(matrix: Tensor) -> bool:
    """True if the matrix is in half precision, and its device multiplies it as it is."""
    return matrix.device.type in NATIVE and matrix.dtype != wide(matrix.dtype)
