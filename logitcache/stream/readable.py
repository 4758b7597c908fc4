"""What streaming reads: a cache on disk, a cache at a URL, or several mixed.

Shape legend: S sequences of a shard.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcache.format.arrays import ShardArrays


class Readable(Protocol):
    """What streaming needs of a cache."""

    @property
    def digest(self) -> str: ...
    @property
    def shards(self) -> Any: ...
    def read_shard(self, index: int) -> ShardArrays: ...
    def read_lengths(self, index: int) -> NDArray[np.int64]: ...
