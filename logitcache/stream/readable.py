"""The interface of what can be streamed: a cache on disk, a cache at a URL, or several mixed.

Shape legend: S sequences of a shard.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcache.format.arrays import ShardArrays


class Readable(Protocol):
    """The methods of a cache that streaming uses."""

    @property
    def digest(self) -> str: ...
    @property
    def shards(self) -> Any: ...
    def read_shard(self, index: int) -> ShardArrays: ...
    def read_lengths(self, index: int) -> NDArray[np.int64]: ...
