"""The length of each sequence of a cache, for packing and the length filter; read once.

Shape legend: S sequences of a shard.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import TargetsError
from logitcache.stream.order import ShardSizes
from logitcache.stream.prefetch import decoding_threads
from logitcache.stream.readable import Readable
from logitcache.stream.selection import LengthFilter

# Shards that are read at the same time.
_AT_A_TIME = 32


class Lengths:
    """The lengths of a cache's sequences, by shard. Those of a shard are read once, when they are first needed."""

    def __init__(self, cache: Readable) -> None:
        self._cache = cache
        self._known: dict[int, NDArray[np.int32]] = {}

    def of(self, shard: int) -> NDArray[np.int32]:
        """``[S]`` tokens of each sequence of a shard."""
        if shard not in self._known:
            self._known[shard] = self._cache.read_lengths(shard).astype(np.int32)
        return self._known[shard]

    def read_all(self) -> None:
        """Read the lengths that aren't known yet, several shards at a time."""
        missing = [shard for shard in range(len(self._cache.shards)) if shard not in self._known]
        ahead = getattr(self._cache, "prefetch", None)
        with ThreadPoolExecutor(decoding_threads()) as pool:
            for start in range(0, len(missing), _AT_A_TIME):
                shards = missing[start : start + _AT_A_TIME]
                if ahead is not None:
                    ahead(shards)  # a remote cache fetches several at a time
                list(pool.map(self.of, shards))

    def sizes(self, chosen: LengthFilter) -> ShardSizes:
        """The sequences and tokens of each shard that the filter keeps.

        Raises:
            TargetsError: there are none.
        """
        whole = ShardSizes.of(self._cache.digest, self._cache.shards)
        if int(whole.sequences_S.sum()) == 0:
            raise TargetsError("the cache holds no sequences")
        if chosen.keeps_all:
            return whole
        self.read_all()
        sums = np.zeros((len(whole.sequences_S), 2), dtype=np.int64)
        for shard in range(len(sums)):
            lengths_S = self.of(shard)
            kept = lengths_S[chosen.keep(lengths_S)]
            sums[shard] = len(kept), kept.sum(dtype=np.int64)
        if int(sums[:, 0].sum()) == 0:
            longest = max(int(self.of(shard).max(initial=0)) for shard in range(len(sums)))
            raise TargetsError(
                f"{chosen} leaves no sequence of {int(whole.sequences_S.sum()):,}; the longest has {longest:,} tokens"
            )
        return ShardSizes(whole.digest, sums[:, 0].copy(), sums[:, 1].copy(), partial(self.kept, chosen))

    def kept(self, chosen: LengthFilter, shard: int) -> NDArray[np.int64]:
        """The numbers of the sequences of a shard that the filter keeps."""
        return np.flatnonzero(chosen.keep(self.of(shard)))
