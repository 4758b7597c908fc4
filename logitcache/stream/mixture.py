"""Several caches as one, each with a share of the tokens.

Each component is an endless series of passes over its cache, each with a new permutation of its shards. Epoch ``e``
takes the tokens from ``e * quota`` to ``(e + 1) * quota`` of this series. So a small cache with a large share is used
several times in an epoch. From a large cache with a small share, every epoch takes the next part, and over many epochs
all sequences are used equally often. The windows of an epoch divide each component's part evenly: every window has the
same shares as the epoch.

Shape legend: S shards of a component, W windows.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import ConfigError, TargetsError, TokenizerMismatchError
from logitcache.format.arrays import ShardArrays
from logitcache.stream.order import EpochOrder, Order, ShardSizes
from logitcache.stream.readable import Readable
from logitcache.targets.beyond import Beyond


class Mixture:
    """Several caches read as one: the shards of all, one after the other.

    If the caches differ in K, or in their number of tail samples or candidates, only ranked entries are used: as many
    as all caches have. The mass of the others joins the residual mass. Statistics that a cache lacks are left out of
    all.

    Attributes:
        caches: the components.
        weights: their shares of the tokens, which add up to 1; None means every sequence once in an epoch.
        digest: identifies the mixture; made from the components' digests and the weights.
    """

    def __init__(self, caches: Sequence[Readable], weights: Sequence[float] | None = None) -> None:
        """Check that the caches can be mixed.

        Raises:
            ConfigError: there isn't one weight for each cache, a weight is negative, all are zero, or a cache is given
                twice.
            TargetsError: a cache holds no sequences.
            TokenizerMismatchError: the caches have different tokenizers or vocabularies.
        """
        self.caches = tuple(caches)
        self.weights = None if weights is None else _shares(weights, len(self.caches))
        digests = [cache.digest for cache in self.caches]
        if len(set(digests)) < len(digests):
            raise ConfigError("a cache is named twice in the mixture: give it once, with a larger weight")
        described = json.dumps({"mixture": 1, "caches": digests, "weights": self.weights}, separators=(",", ":"))
        self.digest = "sha256:" + hashlib.sha256(described.encode()).hexdigest()
        self.shards = _AllShards(self.caches)
        self.starts = [0, *np.cumsum([len(cache.shards) for cache in self.caches]).tolist()]
        self._contents = [_Content.of(cache) for cache in self.caches]
        alike = len({(content.top_k, content.beyond) for content in self._contents}) == 1
        self.top_k = self._contents[0].top_k if alike else min(content.ranked for content in self._contents)
        _check_alike(self.caches, self._contents)
        self._statistics = {
            name: all(getattr(content, name) for content in self._contents) for name in ("log_partition", "logit_std")
        }

    def read_shard(self, index: int) -> ShardArrays:
        """One shard of one of the caches. Raises as its own ``read_shard`` does."""
        component = self.component_of(index)
        arrays = self.caches[component].read_shard(index - self.starts[component])
        absent = {f"{name}_N": None for name, kept in self._statistics.items() if not kept}
        return replace(arrays if arrays.k == self.top_k else arrays.top(self.top_k), **absent)  # type: ignore[arg-type]

    def read_lengths(self, index: int) -> NDArray[np.int64]:
        """Tokens of each sequence of one shard. Raises as the cache's own ``read_lengths`` does."""
        component = self.component_of(index)
        lengths_S: NDArray[np.int64] = self.caches[component].read_lengths(index - self.starts[component])
        return lengths_S

    def component_of(self, shard: int) -> int:
        return bisect_right(self.starts, shard) - 1

    def prefetch(self, shards: Sequence[int]) -> None:
        """Tell the caches that can fetch shards in advance which ones come next."""
        for number, cache in enumerate(self.caches):
            own = [shard - self.starts[number] for shard in shards if self.component_of(shard) == number]
            if own and (ahead := getattr(cache, "prefetch", None)) is not None:
                ahead(own)

    def quotas(self, sizes: ShardSizes) -> list[int]:
        """Tokens of an epoch from each cache; their sum is the number of tokens of all caches.

        Raises:
            TargetsError: a cache with a weight above 0 has no sequences, or none that the length filter keeps.
        """
        tokens = [int(part.sum()) for part in np.split(sizes.tokens_S, self.starts[1:-1])]
        if self.weights is None:
            return tokens
        for number, (weight, held) in enumerate(zip(self.weights, tokens, strict=True)):
            if weight and not held:
                raise TargetsError(f"cache {number + 1} of the mixture has weight {weight:g}, but no sequences to give")
        # A cache with any weight above 0 gives at least one token.
        return [max(1, round(weight * sum(tokens))) if weight else 0 for weight in self.weights]


class _AllShards(Sequence[Any]):
    """The shard tables of several caches one after the other, without a copy."""

    def __init__(self, caches: Sequence[Readable]) -> None:
        self._caches = caches

    def __len__(self) -> int:
        return sum(len(cache.shards) for cache in self._caches)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(cache.shards for cache in self._caches)

    def __getitem__(self, index: Any) -> Any:
        for cache in self._caches:
            if index < len(cache.shards):
                return cache.shards[index]
            index -= len(cache.shards)
        raise IndexError(index)


def _shares(weights: Sequence[float], count: int) -> tuple[float, ...]:
    if len(weights) != count:
        raise ConfigError(f"weights = {list(weights)} is not allowed; give one a cache, {count} in all")
    if any(not (weight >= 0 and math.isfinite(weight)) for weight in weights) or not any(weights):
        raise ConfigError(f"weights = {list(weights)} is not allowed; they must be 0 or above, and not all 0")
    # Rounded, so that 7:3 and 0.7:0.3 are the same mixture. Divided by the largest first, so that the sum can't
    # overflow.
    parts = [weight / max(weights) for weight in weights]
    return tuple(round(part / sum(parts), 12) for part in parts)


@dataclass(frozen=True)
class _Content:
    """What caches of a mixture are compared by: from the manifest if there is one, and from the first shard."""

    top_k: int
    beyond: Beyond
    vocab_size: int
    tokenizer: str | None
    log_partition: bool
    logit_std: bool

    @property
    def ranked(self) -> int:
        return self.top_k - self.beyond.count

    @classmethod
    def of(cls, cache: Readable) -> _Content:
        if not len(cache.shards):
            raise TargetsError("a cache of the mixture holds no sequences")
        manifest, first = getattr(cache, "manifest", None), cache.read_shard(0)
        return cls(
            first.k,
            first.beyond,
            first.vocab_size,
            None if manifest is None else manifest.provenance.tokenizer_digest,
            first.log_partition_N is not None,
            first.logit_std_N is not None,
        )


def _check_alike(caches: Sequence[Readable], contents: Sequence[_Content]) -> None:
    for cache, content in zip(caches[1:], contents[1:], strict=True):
        for name in ("vocab_size", "tokenizer"):
            ours, theirs = getattr(contents[0], name), getattr(content, name)
            if ours != theirs:
                first, other = (getattr(one, "root", one.digest) for one in (caches[0], cache))
                raise TokenizerMismatchError(
                    f"the caches don't go together: {name} is {ours} in {first} and {theirs} in {other}; "
                    "mix caches of one tokenizer and vocabulary only"
                )


class _Passes:
    """A component's endless series of passes. Its tokens and sequences are counted from the beginning of the series."""

    def __init__(self, order: EpochOrder, sizes: ShardSizes, number: int, shards: slice) -> None:
        self._order, self._number, self._first = order, number, shards.start
        self._sequences_S, self._tokens_S = sizes.sequences_S[shards], sizes.tokens_S[shards]
        self.sequences, self.tokens = int(self._sequences_S.sum()), int(self._tokens_S.sum())
        self._pass = lru_cache(maxsize=4)(self._make_pass)

    def _make_pass(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The shards of one pass in order, and the numbers ``[S + 1]`` of tokens and sequences before each."""
        shards_S = self._order.permutation(f"component {self._number}", len(self._tokens_S), epoch=number)
        before = [
            np.concatenate([[0], np.cumsum(sizes_S[shards_S])]) for sizes_S in (self._tokens_S, self._sequences_S)
        ]
        return shards_S, before[0], before[1]

    def sequence_at(self, token: int) -> int:
        """The sequence that begins at or near a token. All sequences of a shard are taken as equally long."""
        number, inside = divmod(token, self.tokens)
        shards_S, tokens_S1, sequences_S1 = self._pass(number)
        place = int(np.searchsorted(tokens_S1, inside, side="right")) - 1
        if inside == 0:
            return number * self.sequences
        share = (inside - int(tokens_S1[place])) / int(tokens_S1[place + 1] - tokens_S1[place])
        return (
            number * self.sequences + int(sequences_S1[place]) + round(share * int(self._sequences_S[shards_S[place]]))
        )

    def between(self, start: int, stop: int) -> NDArray[np.int64]:
        """``[stop - start, 2]``: (shard of the mixture, place within it) of these sequences of the series."""
        parts = [np.zeros((0, 2), dtype=np.int64)]
        for number in range(start // self.sequences, -(-stop // self.sequences)):
            shards_S, _, sequences_S1 = self._pass(number)
            low, high = max(start - number * self.sequences, 0), min(stop - number * self.sequences, self.sequences)
            index = np.arange(low, high)
            place = np.searchsorted(sequences_S1, index, side="right") - 1
            parts.append(np.stack([shards_S[place] + self._first, index - sequences_S1[place]], axis=1))
        return np.concatenate(parts)


class MixedOrder(EpochOrder):
    """The order of one epoch of a mixture; see the module's docstring."""

    def __init__(self, order: Order, sizes: ShardSizes, epoch: int, mixture: Mixture) -> None:
        super().__init__(order, sizes, epoch)
        quotas = mixture.quotas(sizes)
        windows = max(1, round(sum(quotas) / max(1, order.window_tokens)))
        used = [number for number, quota in enumerate(quotas) if quota]
        self._passes = [
            _Passes(self, sizes, number, slice(mixture.starts[number], mixture.starts[number + 1])) for number in used
        ]
        # Where each window begins, in each used component's series of sequences.
        self._cuts = np.array(
            [
                [passes.sequence_at(quota * epoch + quota * window // windows) for window in range(windows + 1)]
                for passes, quota in zip(self._passes, (quotas[number] for number in used), strict=True)
            ],
            dtype=np.int64,
        ).reshape(len(used), windows + 1)
        counts_W = np.diff(self._cuts, axis=1).sum(axis=0)
        self.first_sample_W1 = np.concatenate([[0], np.cumsum(counts_W)])

    def window_shards(self, window: int) -> NDArray[np.int64]:
        return np.unique(self.unshuffled(window)[:, 0])

    def unshuffled(self, window: int) -> NDArray[np.int64]:
        cuts = zip(self._passes, self._cuts[:, window], self._cuts[:, window + 1], strict=True)
        return np.concatenate([passes.between(int(start), int(stop)) for passes, start, stop in cuts])


def describe(mixture: Mixture, sizes: ShardSizes) -> list[dict[str, Any]]:
    """How much an epoch takes from each cache, as plain values for plans and reports."""
    quotas = mixture.quotas(sizes)
    held = [int(part.sum()) for part in np.split(sizes.tokens_S, mixture.starts[1:-1])]
    shares = mixture.weights or [quota / sum(quotas) for quota in quotas]
    return [
        {
            "cache": str(getattr(cache, "root", "")),
            "digest": cache.digest,
            "share": round(share, 6),
            "tokens_per_epoch": quota,
            "passes_per_epoch": round(quota / max(1, tokens), 3),
        }
        for cache, share, quota, tokens in zip(mixture.caches, shares, quotas, held, strict=True)
    ]
