"""Store whole numbers as one symbol byte each, with a few extra bits for large numbers.

A symbol means a range of numbers, and the extra bits say which number of the range. Each small number has its own
symbol. For large numbers a range is narrow compared with the numbers, so all numbers in it are about equally likely.
Plain zstd on the symbols needs half a per cent more than the entropy of the numbers; on byte planes it needs a tenth
more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError
from logitcache.format.stored import ArrayReader, row_blocks, to_planes

#: How many symbols have ranges of 1, 2^4, 2^8, 2^16 and 2^32 numbers, in this order.
_COUNTS, _BITS = (96, 64, 84, 11, 1), (0, 4, 8, 16, 32)
_FIRST = np.cumsum((0, *_COUNTS)).tolist()
_WIDTHS = np.repeat(1 << np.array(_BITS, np.int64), _COUNTS)
_BASES = np.cumsum(_WIDTHS) - _WIDTHS
#: ``bits, first symbol, symbol after the last`` of each class of symbols with extra bits.
_CLASSES = tuple(zip(_BITS[1:], _FIRST[1:-1], _FIRST[2:], strict=True))
_TABLED = 1 << 20


def to_symbols(name: str, numbers: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Store unsigned integers ``[R, C]`` (or ``[C]``) as symbols of the same shape, and their extra bits in C order."""
    numbers_RC = np.atleast_2d(numbers)
    top = int(numbers.max()) if numbers.size else 0
    classes = [(bits, first, end) for bits, first, end in _CLASSES if _BASES[first] <= top]
    symbols_RC = np.empty(numbers_RC.shape, np.uint8)
    extras: dict[int, list[NDArray[Any]]] = {bits: [] for bits, _, _ in classes}
    table = _symbol_table(top) if top < _TABLED else None
    for start, stop in row_blocks(*numbers_RC.shape):
        block = numbers_RC[start:stop].ravel()
        symbols = table.take(block) if table is not None else np.searchsorted(_BASES, block, side="right") - 1
        symbols_RC[start:stop] = symbols.reshape(-1, numbers_RC.shape[1])
        for bits, first, end in classes:
            where = np.flatnonzero(_between(symbols.astype(np.uint8, copy=False), first, end))
            # The ranges of a class follow each other without gaps, so the low bits count from its first number.
            extras[bits].append((block[where] - block.dtype.type(_BASES[first])) & block.dtype.type((1 << bits) - 1))
    stored: dict[str, NDArray[Any]] = {name: symbols_RC.reshape(numbers.shape)}
    for bits, parts in extras.items():
        extra = np.concatenate(parts)
        stored[f"{name}_extra{bits}"] = _pack_nibbles(extra) if bits == 4 else to_planes(extra)
    return stored


def _symbol_table(top: int) -> NDArray[np.uint8]:
    """The symbol of every number up to ``top``."""
    starts = _BASES[top >= _BASES]
    return np.repeat(np.arange(len(starts), dtype=np.uint8), np.diff(np.append(starts, top + 1)))


class SymbolReader:
    """The numbers ``[R, C]`` (or ``[C]``, one row) that :func:`to_symbols` stored, some rows at a time.

    Attributes:
        dtype: uint16 where all numbers fit, else uint32.
    """

    def __init__(self, arrays: ArrayReader, name: str, shape: tuple[int, ...]) -> None:
        self._name = name
        self._symbols_RC: NDArray[np.uint8] = np.atleast_2d(arrays.array(name, np.uint8, shape))
        self._extras: list[_Extra] = []
        for bits, first, end in _CLASSES:
            if f"{name}_extra{bits}" not in arrays:
                break
            self._extras.append(_Extra(arrays, f"{name}_extra{bits}", bits, first, end))
        known = self._extras[-1].end if self._extras else _FIRST[1]
        if self._symbols_RC.size and int(self._symbols_RC.max()) >= known:
            raise CorruptCacheError(f"{name}: symbol {int(self._symbols_RC.max())} needs extra bits that are missing")
        self.dtype: type[np.uint16 | np.uint32] = np.uint16 if len(self._extras) <= 2 else np.uint32
        self._bases = _BASES.astype(self.dtype)

    def rows(self, start: int, end: int) -> NDArray[Any]:
        """Read some rows; each call must begin where the last one ended.

        Raises:
            CorruptCacheError: there are too few extra bits.
        """
        symbols = self._symbols_RC[start:end]
        numbers: NDArray[Any] = self._bases.take(symbols)
        for extra in self._extras:
            extra.add_to(numbers.reshape(-1), symbols.reshape(-1))
        return numbers

    def finish(self) -> None:
        """Check that all extra bits have been read.

        Raises:
            CorruptCacheError: there are more.
        """
        for extra in self._extras:
            extra.finish()

    @staticmethod
    def read(arrays: ArrayReader, name: str, size: int) -> NDArray[Any]:
        """Read a whole vector ``[size]``.

        Raises:
            CorruptCacheError: it is malformed.
        """
        reader = SymbolReader(arrays, name, (size,))
        numbers: NDArray[Any] = reader.rows(0, 1)[0]
        reader.finish()
        return numbers


class _Extra:
    """The extra bits of one class of symbols, and how many have been used."""

    def __init__(self, arrays: ArrayReader, name: str, bits: int, first: int, end: int) -> None:
        self._name, self._first, self.end = name, first, end
        self._used, self._slack = 0, 1 if bits == 4 else 0
        if bits == 4:
            self._values = _unpack_nibbles(arrays.array(name, np.uint8, (None,)))
        else:
            self._values = arrays.planes(name, np.uint16 if bits <= 16 else np.uint32, (None,))

    def add_to(self, numbers: NDArray[Any], symbols: NDArray[np.uint8]) -> None:
        where = np.flatnonzero(_between(symbols, self._first, self.end))
        part = self._values[self._used : self._used + len(where)]
        if len(part) < len(where):
            raise CorruptCacheError(f"the array {self._name} is too short")
        numbers[where] += part.astype(numbers.dtype, copy=False)
        self._used += len(where)

    def finish(self) -> None:
        if len(self._values) - self._used > self._slack:
            raise CorruptCacheError(f"the array {self._name} is too long")


def _between(symbols: NDArray[np.uint8], first: int, end: int) -> NDArray[np.bool_]:
    # One comparison: below ``first`` the difference wraps round to a large number.
    result: NDArray[np.bool_] = symbols - np.uint8(first) < np.uint8(end - first)
    return result


def _pack_nibbles(extra: NDArray[Any]) -> NDArray[np.uint8]:
    """Two numbers in a byte, the first in the low half; after an odd number of them comes a 0."""
    even = np.append(extra.astype(np.uint8), np.zeros(len(extra) % 2, np.uint8))
    packed: NDArray[np.uint8] = even[0::2] | (even[1::2] << np.uint8(4))
    return packed


def _unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint16]:
    nibbles = np.empty(2 * len(packed), np.uint16)
    nibbles[0::2] = packed & np.uint8(15)
    nibbles[1::2] = packed >> np.uint8(4)
    return nibbles
