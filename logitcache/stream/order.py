"""The order of samples: a pure function of (seed, epoch, manifest digest, index), and of nothing else.

Shards are permuted. Neighbours in this permutation form windows of about ``window_tokens`` tokens, and the sequences of
a window are permuted among themselves. So samples of different shards are mixed, only one window must be in memory, and
any index can be found directly. Only the raw numbers of a Philox generator are used, because numpy promises never to
change them; it doesn't promise this for its shuffling methods.

Shape legend: S shards, W windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

DEFAULT_WINDOW_TOKENS = 1 << 19


class _Sizes(Protocol):
    @property
    def sequences(self) -> int: ...
    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True, eq=False)
class ShardSizes:
    """How many sequences and tokens each shard holds. The order needs no other information about a cache.

    If sequences are left out, ``kept`` gives the indices of the kept sequences of a shard, and the sizes count only
    these.
    """

    digest: str
    sequences_S: NDArray[np.int64]
    tokens_S: NDArray[np.int64]
    kept: Callable[[int], NDArray[np.int64]] | None = None

    @classmethod
    def of(cls, digest: str, shards: Sequence[_Sizes]) -> ShardSizes:
        pairs = np.array([(shard.sequences, shard.tokens) for shard in shards], dtype=np.int64).reshape(-1, 2)
        return cls(digest, pairs[:, 0].copy(), pairs[:, 1].copy())

    def among_all(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Turn pairs ``[samples, 2]`` of (shard, index among the kept sequences) into (shard, sequence)."""
        if self.kept is None:
            return pairs
        found = pairs.copy()
        for shard in np.unique(pairs[:, 0]).tolist():
            here = pairs[:, 0] == shard
            found[here, 1] = self.kept(shard)[pairs[here, 1]]
        return found


@dataclass(frozen=True)
class Order:
    """The settings that an order depends on, besides the cache itself."""

    seed: int = 0
    window_tokens: int = DEFAULT_WINDOW_TOKENS
    shuffle: bool = True

    def epoch(self, sizes: ShardSizes, epoch: int) -> PlainOrder:
        return PlainOrder(self, sizes, epoch)


class EpochOrder:
    """One epoch's order, window by window: the base of :class:`PlainOrder` and ``mixture.MixedOrder``.

    Attributes:
        first_sample_W1: index of each window's first sample in the epoch, and at the end the epoch's number of samples.
    """

    first_sample_W1: NDArray[np.int64]

    def __init__(self, order: Order, sizes: ShardSizes, epoch: int) -> None:
        self._order, self._sizes, self._epoch = order, sizes, epoch

    @property
    def windows(self) -> int:
        return len(self.first_sample_W1) - 1

    @property
    def samples(self) -> int:
        return int(self.first_sample_W1[-1])

    def window_shards(self, window: int) -> NDArray[np.int64]:
        """The shards that a window reads, each once."""
        raise NotImplementedError

    def unshuffled(self, window: int) -> NDArray[np.int64]:
        """``[samples, 2]``: (shard, index among its kept sequences) of a window's samples, before they are permuted."""
        raise NotImplementedError

    def window_samples(self, window: int) -> NDArray[np.int64]:
        """``[samples, 2]``: (shard, sequence within it) of each sample of a window, in order."""
        pairs = self.unshuffled(window)
        return self._sizes.among_all(pairs[self.permutation(f"window {window}", len(pairs))])

    def shards_by_use(self, window: int) -> list[int]:
        """The shards that a window reads, in the order in which its samples need them."""
        shards, first_use = np.unique(self.window_samples(window)[:, 0], return_index=True)
        by_use: list[int] = shards[np.argsort(first_use)].tolist()
        return by_use

    def window_of(self, sample: int) -> int:
        """The window that holds a sample of the epoch, by its index."""
        return int(np.searchsorted(self.first_sample_W1, sample, side="right")) - 1

    def permutation(self, purpose: str, count: int, epoch: int | None = None) -> NDArray[np.int64]:
        """A permutation of ``range(count)`` that depends on seed, epoch, digest and purpose only."""
        if not self._order.shuffle:
            return np.arange(count, dtype=np.int64)
        number = self._epoch if epoch is None else epoch
        text = f"logitcache order 1|{self._order.seed}|{number}|{self._sizes.digest}|{purpose}"
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
        draws: NDArray[np.uint64] = np.random.Philox(key=key).random_raw(count)
        return np.argsort(draws, kind="stable").astype(np.int64)


class PlainOrder(EpochOrder):
    """The order of one cache.

    Attributes:
        shards_S: the shards in the order in which they are read.
        window_starts_W1: window ``w`` reads ``shards_S[window_starts_W1[w]:window_starts_W1[w + 1]]``.
    """

    def __init__(self, order: Order, sizes: ShardSizes, epoch: int) -> None:
        super().__init__(order, sizes, epoch)
        count = len(sizes.sequences_S)
        self.shards_S = self.permutation("shards", count)
        tokens_S = sizes.tokens_S[self.shards_S]
        # The shard that reaches the size of a window is its last one: a window has at least one shard, and is at most
        # one shard too large.
        window_S = (np.cumsum(tokens_S) - tokens_S) // max(1, order.window_tokens)
        starts = np.flatnonzero(np.diff(window_S, prepend=-1))
        self.window_starts_W1 = np.append(starts, count)
        ends_S1 = np.concatenate([[0], np.cumsum(sizes.sequences_S[self.shards_S])])
        self.first_sample_W1 = ends_S1[self.window_starts_W1]

    def window_shards(self, window: int) -> NDArray[np.int64]:
        shards = self.shards_S[self.window_starts_W1[window] : self.window_starts_W1[window + 1]]
        return shards[self._sizes.sequences_S[shards] > 0]

    def unshuffled(self, window: int) -> NDArray[np.int64]:
        shards = self.window_shards(window)
        counts = self._sizes.sequences_S[shards]
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([np.repeat(shards, counts), np.arange(int(counts.sum())) - starts], axis=1)
