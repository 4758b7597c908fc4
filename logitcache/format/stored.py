"""What a shard format writes: a few plain arrays and a small JSON object. The format doesn't know what they mean.

Whole numbers of several bytes are stored as byte planes (all low bytes, then all next bytes …): so plain zstd
compresses them well, in any container.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError

#: The dtypes that stored arrays may have.
DTYPES = ("uint8", "uint32", "float32")

Shape = tuple[int | None, ...]
_BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class StoredShard:
    """Named arrays (uint8, uint32 or float32, C order) and JSON attributes."""

    arrays: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Any]


class ArrayReader:
    """Reads stored arrays by name, checks their dtype and shape, and finds arrays that nothing has read."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._left = dict(arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def array(self, name: str, dtype: type[np.generic], shape: Shape) -> NDArray[Any]:
        """Return an array; None in ``shape`` means any size.

        Raises:
            CorruptCacheError: it is missing, or of another dtype or shape.
        """
        array = self._left.pop(name, None)
        if array is None:
            raise CorruptCacheError(f"the array {name} is missing")
        fits = len(shape) == array.ndim and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            raise CorruptCacheError(f"the array {name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
        return array

    def planes(self, name: str, dtype: type[np.unsignedinteger[Any]], shape: Shape) -> NDArray[Any]:
        """Return whole numbers of ``shape`` that were stored as byte planes.

        Raises:
            CorruptCacheError: as for :meth:`array`; or there are more planes than ``dtype`` has bytes.
        """
        planes = self.array(name, np.uint8, (None, *shape))
        if not 1 <= len(planes) <= np.dtype(dtype).itemsize:
            raise CorruptCacheError(f"the array {name} has {len(planes)} byte planes, for {np.dtype(dtype).name}")
        return from_planes(planes, dtype)

    def finish(self) -> None:
        """Check that every array has been read.

        Raises:
            CorruptCacheError: there are more.
        """
        if self._left:
            raise CorruptCacheError(f"it holds arrays that aren't part of the format: {', '.join(sorted(self._left))}")


def size_limit(payload_bytes: int) -> int:
    """The most bytes that a shard file of this size may decode to: more than real shards need."""
    return (256 << 20) + 64 * payload_bytes


def row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Split ``[rows, columns]`` into blocks of rows ``start, end`` that fit in the CPU's cache, of at least one row."""
    if columns:
        step = max(1, _BLOCK // columns)
        for start in range(0, rows, step):
            yield start, min(start + step, rows)


def zstd_level(name: str) -> int:
    """The zstd level for an array.

    Some encoded arrays look like random numbers, and a search for repetitions gains nothing: the lowest level is 20
    times faster, and even makes them smaller. Tables, masks and classes have repetitions.
    """
    return 1 if name.startswith(("id_places", "logprob", "residual", "token_places")) else 9


def to_planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Split unsigned integers ``[...]`` to byte planes ``[P, ...]``, low bytes first, without high planes of zeros."""
    wide = np.ascontiguousarray(values)
    top = int(wide.max()) if wide.size else 0
    planes = max(1, (top.bit_length() + 7) // 8)
    little = wide.astype(wide.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    bytes_ = little.reshape(*wide.shape, wide.dtype.itemsize)
    return np.ascontiguousarray(np.moveaxis(bytes_, -1, 0)[:planes])


def from_planes(planes: NDArray[np.uint8], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Join byte planes ``[P, ...]`` into unsigned integers ``[...]`` of ``dtype``, which has at least P bytes."""
    values: NDArray[Any] = planes[0].astype(dtype)
    for byte, plane in enumerate(planes[1:], start=1):
        values |= plane.astype(dtype) << dtype(8 * byte)
    return values
