"""Store log-probs as whole numbers: multiples of a step, which is a power of two, or the bits of a float.

Log-probs never rise along a row. So their numbers of steps never fall, and neither do the bits of negative floats.
The differences along K are stored, modulo the size of the unsigned type, so that any input can be restored.
Differences of steps are mostly small: two neighbours share a byte, and larger ones continue in a list of their own.

Shape legend: N positions, K entries a position, E exceptions.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError
from logitcache.format.stored import ArrayReader, row_blocks, to_planes

ValueKind = Literal["float32", "float16", "steps"]
#: Numbers of steps: the code of -inf, and the largest code of a finite value.
MINUS_INFINITY, LARGEST_STEPS = 0xFFFF, 0xFFFE
#: float16 keeps every value from 0 down to this within 1/64 nat; lower values are stored as exceptions.
HALF_FLOOR = -64.0
_FULL_HALF = 15
_LONG_ROW = 1024


def encode_logprobs(logprobs_NK: NDArray[np.float32], kind: ValueKind, step: float) -> dict[str, NDArray[Any]]:
    """Store the log-probs."""
    codes_NK, exceptions = _to_codes("logprob", logprobs_NK, kind, step)
    differences_KN = codes_NK.T.copy()  # a copy, because the next line changes it
    differences_KN[1:] -= differences_KN[:-1].copy()
    if kind == "steps":
        return _pack_pairs(differences_KN) | exceptions
    return {"logprob_differences": to_planes(differences_KN)} | exceptions


def decode_logprobs(
    arrays: ArrayReader, shape_KN: tuple[int, int], kind: ValueKind, step: float
) -> NDArray[np.float32]:
    """Undo :func:`encode_logprobs`; the result is ``[N, K]``, C-contiguous.

    Raises:
        CorruptCacheError: the arrays are malformed, or a row rises or holds NaN.
    """
    codes_KN = _unpack_pairs(arrays, shape_KN) if kind == "steps" else _accumulate(arrays, shape_KN, kind)
    logprobs_NK = _from_codes(codes_KN.T, kind, step)
    if _restore_exceptions(arrays, "logprob", logprobs_NK) or kind != "steps":
        falls = (logprobs_NK[:, 1:] <= logprobs_NK[:, :-1]).all() and (logprobs_NK[:, 0] < np.inf).all()
        if not falls:
            raise CorruptCacheError("the log-probs of a position rise, or are not numbers")
    return logprobs_NK


def encode_residual(residual_N: NDArray[np.float32], kind: ValueKind, step: float) -> dict[str, NDArray[Any]]:
    """Store the residual log-probs."""
    codes_N, exceptions = _to_codes("residual", residual_N, kind, step)
    return {"residual": to_planes(codes_N)} | exceptions


def decode_residual(arrays: ArrayReader, targets: int, kind: ValueKind, step: float) -> NDArray[np.float32]:
    """Undo :func:`encode_residual`.

    Raises:
        CorruptCacheError: the arrays are malformed, or hold NaN or +inf.
    """
    codes_N = arrays.planes("residual", np.uint32 if kind == "float32" else np.uint16, (targets,))
    residual_N = _from_codes(codes_N, kind, step)
    _restore_exceptions(arrays, "residual", residual_N)
    if not (residual_N < np.inf).all():
        raise CorruptCacheError("a residual log-prob is not a number, or +inf")
    return residual_N


def _to_codes(
    name: str, values: NDArray[np.float32], kind: ValueKind, step: float
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Values as unsigned integers of the same shape, and the arrays that hold the values that don't fit."""
    if kind == "float32":
        return np.ascontiguousarray(values).view(np.uint32), {}
    if kind == "float16":
        outside = (np.abs(values) > -HALF_FLOOR) & np.isfinite(values)
        codes = np.clip(values, HALF_FLOOR, -HALF_FLOOR, where=np.isfinite(values), out=values.copy())
        return codes.astype(np.float16).view(np.uint16), _exceptions(name, values, outside)
    with np.errstate(over="ignore"):  # -3e38 / step may be -inf, which counts as outside
        steps = np.rint(values * np.float32(-1 / step))
    outside = (steps < 0) | (steps > LARGEST_STEPS)
    if not outside.any():
        return steps.astype(np.uint16), {}
    codes = np.clip(steps, 0, LARGEST_STEPS).astype(np.uint16)
    infinite = np.isneginf(values)
    codes[infinite] = MINUS_INFINITY
    return codes, _exceptions(name, values, outside & ~infinite)


def _from_codes(codes: NDArray[Any], kind: ValueKind, step: float) -> NDArray[np.float32]:
    """Undo :func:`_to_codes`, except for the exceptions; in C order."""
    if kind == "float32":
        return np.ascontiguousarray(codes).view(np.float32)
    if kind == "float16":
        return np.ascontiguousarray(codes).view(np.float16).astype(np.float32)
    codes = np.ascontiguousarray(codes)
    values: NDArray[np.float32] = np.multiply(codes, np.float32(-step), dtype=np.float32)
    values += np.float32(0)  # -0.0 becomes 0.0
    if codes.size and int(codes.max()) == MINUS_INFINITY:
        values[codes == MINUS_INFINITY] = -np.inf
    return values


def _exceptions(name: str, values: NDArray[np.float32], outside: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    index_E = np.flatnonzero(outside).astype(np.uint32)
    if not len(index_E):
        return {}
    return {f"{name}_exception_index": index_E, f"{name}_exception_value": values.reshape(-1)[index_E]}


def _restore_exceptions(arrays: ArrayReader, name: str, values: NDArray[np.float32]) -> bool:
    """Restore the exact values of the exceptions; True if there were any."""
    if f"{name}_exception_index" not in arrays:
        return False
    index_E = arrays.array(f"{name}_exception_index", np.uint32, (None,))
    value_E = arrays.array(f"{name}_exception_value", np.float32, (len(index_E),))
    if len(index_E) and (int(index_E[-1]) >= values.size or not (index_E[1:] > index_E[:-1]).all()):
        raise CorruptCacheError(f"the array {name}_exception_index is out of range or out of order")
    values.reshape(-1)[index_E] = value_E
    return True


def _pack_pairs(differences_KN: NDArray[np.uint16]) -> dict[str, NDArray[Any]]:
    """Entries 2r and 2r + 1 share byte ``[r, n]``, the first in the low half; the list has what is above 15."""
    halves_KN = np.minimum(differences_KN, _FULL_HALF).astype(np.uint8)
    if len(halves_KN) % 2:
        halves_KN = np.concatenate([halves_KN, np.zeros_like(halves_KN[:1])])
    more = differences_KN[differences_KN >= _FULL_HALF] - np.uint16(_FULL_HALF)
    return {
        "logprob_pairs": halves_KN[0::2] | (halves_KN[1::2] << np.uint8(4)),
        "logprob_more": to_planes(more),
    }


def _unpack_pairs(arrays: ArrayReader, shape_KN: tuple[int, int]) -> NDArray[np.uint16]:
    """Whole numbers of steps ``[K, N]``."""
    k, targets = shape_KN
    pairs_RN = arrays.array("logprob_pairs", np.uint8, (-(-k // 2), targets))
    more = arrays.planes("logprob_more", np.uint16, (None,))
    codes_KN = np.empty(shape_KN, np.uint16)
    used = 0
    last_N = np.zeros(targets, np.uint16)
    for start, end in row_blocks(len(pairs_RN), targets):
        codes = _unpack_halves(pairs_RN[start:end])[: k - 2 * start]
        where = np.flatnonzero(codes == _FULL_HALF)
        if used + len(where) > len(more):
            raise CorruptCacheError("the array logprob_more is too short")
        codes.reshape(-1)[where] += more[used : used + len(where)]
        used += len(where)
        sums = codes_KN[2 * start : 2 * start + len(codes)]
        _add_up(codes, last_N, sums)
        if (sums[0] < last_N).any() or (sums[1:] < sums[:-1]).any():
            raise CorruptCacheError("the log-probs of a position fall below what can be stored")
        last_N = sums[-1]
    if used < len(more):
        raise CorruptCacheError("the array logprob_more is too long")
    return codes_KN


def _unpack_halves(pairs_RN: NDArray[np.uint8]) -> NDArray[np.uint16]:
    rows, columns = pairs_RN.shape
    halves = np.empty((rows, 2, columns), np.uint16)
    np.bitwise_and(pairs_RN, np.uint8(_FULL_HALF), out=halves[:, 0])
    np.right_shift(pairs_RN, np.uint8(4), out=halves[:, 1])
    return halves.reshape(2 * rows, columns)


def _accumulate(arrays: ArrayReader, shape_KN: tuple[int, int], kind: ValueKind) -> NDArray[Any]:
    codes_KN = arrays.planes("logprob_differences", np.uint32 if kind == "float32" else np.uint16, shape_KN)
    _add_up(codes_KN, np.zeros(shape_KN[1], codes_KN.dtype), codes_KN)
    return codes_KN


def _add_up(codes_KN: NDArray[Any], before_N: NDArray[Any], out_KN: NDArray[Any]) -> None:
    """Running sums along K, modulo the size of the type, starting from ``before_N``."""
    if codes_KN.shape[1] < _LONG_ROW:
        np.add(codes_KN[:1], before_N, out=codes_KN[:1])
        np.cumsum(codes_KN, axis=0, dtype=codes_KN.dtype, out=out_KN)
        return
    for codes_N, out_N in zip(codes_KN, out_KN, strict=True):  # numpy's own cumsum is slow across long rows
        np.add(codes_N, before_N, out=out_N)
        before_N = out_N
