"""Log-probs as whole numbers: rounded to steps of a power of two, or the bits of a float.

Each row never rises, so both the rounded values and the bits of negative floats never fall: what is stored is the
difference along K, in the unsigned type's own modular arithmetic, which any input survives.

Shape legend: N positions, K entries a position, E exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError

MINUS_INFINITY = np.uint16(0xFFFF)
LARGEST_CODE = 0xFFFE
#: float16 keeps every value down to here within 1/64 nat; what lies below is stored as an exception.
HALF_FLOOR = -64.0


@dataclass(frozen=True, eq=False)
class Codes:
    """Values as unsigned integers, and those that don't fit: flat index (ascending) and exact value."""

    codes: NDArray[Any]
    exception_index_E: NDArray[np.uint32]
    exception_value_E: NDArray[np.float32]


def to_codes(values: NDArray[np.float32], kind: str, step: float) -> Codes:
    """Code values of any shape; ``kind`` is ``float32``, ``float16`` or ``steps``."""
    if kind == "float32":
        return _plain(np.ascontiguousarray(values).view(np.uint32))
    if kind == "float16":
        outside = (values < HALF_FLOOR) & np.isfinite(values)
        outside |= values > -HALF_FLOOR
        kept = np.where(outside, np.float32(HALF_FLOOR), values) if outside.any() else values
        return _with_exceptions(kept.astype(np.float16).view(np.uint16), values, outside)
    with np.errstate(over="ignore"):  # -3e38 / step is -inf, which is an exception anyway
        steps = np.rint(values * np.float32(-1 / step))
    outside = (steps < 0) | (steps > LARGEST_CODE)
    if not outside.any():
        return _plain(steps.astype(np.uint16))
    codes = np.clip(steps, 0, LARGEST_CODE).astype(np.uint16)
    infinite = np.isneginf(values)
    codes[infinite] = MINUS_INFINITY
    return _with_exceptions(codes, values, outside & ~infinite)


def from_codes(stored: Codes, kind: str, step: float, what: str) -> NDArray[np.float32]:
    """Undo :func:`to_codes`; the result is C-contiguous whatever the layout of the codes.

    Raises:
        CorruptCacheError: an exception's index is out of range or out of order.
    """
    if kind == "float32":
        values = np.ascontiguousarray(stored.codes).view(np.float32)
    elif kind == "float16":
        values = np.ascontiguousarray(stored.codes).view(np.float16).astype(np.float32)
    else:
        values = np.empty(stored.codes.shape, np.float32)
        np.multiply(stored.codes, np.float32(-step), out=values)
        values += np.float32(0)  # -0.0 becomes 0.0
        values[stored.codes == MINUS_INFINITY] = -np.inf
    index, exact = stored.exception_index_E, stored.exception_value_E
    if index.shape != exact.shape or index.ndim != 1:
        raise CorruptCacheError(f"{what}: {index.shape} exception indices for {exact.shape} values")
    if len(index):
        if int(index[-1]) >= values.size or not (index[1:] > index[:-1]).all():
            raise CorruptCacheError(f"{what}: the exception indices are out of range or out of order")
        values.reshape(-1)[index] = exact
    return values


def difference(codes_NK: NDArray[Any]) -> NDArray[Any]:
    """Differences along K of ``[N, K]``, stored K-major as ``[K, N]``."""
    steps_KN = np.ascontiguousarray(codes_NK.T)
    steps_KN[1:] -= steps_KN[:-1].copy()
    return steps_KN


def accumulate(steps_KN: NDArray[Any]) -> NDArray[Any]:
    """Undo :func:`difference`, in place, still ``[K, N]``."""
    for k in range(1, len(steps_KN)):
        np.add(steps_KN[k], steps_KN[k - 1], out=steps_KN[k])
    return steps_KN


def _plain(codes: NDArray[Any]) -> Codes:
    return Codes(codes, np.zeros(0, np.uint32), np.zeros(0, np.float32))


def _with_exceptions(codes: NDArray[Any], values: NDArray[np.float32], outside: NDArray[np.bool_]) -> Codes:
    index = np.flatnonzero(outside)
    return Codes(codes, index.astype(np.uint32), values.reshape(-1)[index].astype(np.float32))
