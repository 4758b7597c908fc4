"""What a shard format writes: a few plain arrays and a small JSON object, with no meaning attached.

Whole numbers wider than a byte are stored as byte planes (all low bytes, then all next bytes …): that is what makes
plain zstd work well on them, in any container.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError


@dataclass(frozen=True, eq=False)
class StoredShard:
    """Named arrays (uint8, uint16, uint32 or float32, little-endian, C order) and JSON attributes."""

    arrays: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Any]


def to_planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Split unsigned integers ``[...]`` into byte planes ``[P, ...]``, low byte first; high planes of zeros are left out."""
    wide = np.ascontiguousarray(values)
    size = wide.dtype.itemsize
    top = int(wide.max()) if wide.size else 0
    planes = max(1, (top.bit_length() + 7) // 8)
    bytes_ = wide.astype(wide.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(*wide.shape, size)
    return np.ascontiguousarray(np.moveaxis(bytes_, -1, 0)[:planes])


def from_planes(planes: NDArray[np.uint8], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Join byte planes ``[P, ...]`` into unsigned integers ``[...]`` of ``dtype``.

    Raises:
        CorruptCacheError: there are more planes than ``dtype`` has bytes.
    """
    if not 1 <= len(planes) <= np.dtype(dtype).itemsize:
        raise CorruptCacheError(f"{len(planes)} byte planes don't fit {np.dtype(dtype).name}")
    values: NDArray[Any] = planes[0].astype(dtype)
    for byte, plane in enumerate(planes[1:], start=1):
        values |= plane.astype(dtype) << dtype(8 * byte)
    return values
