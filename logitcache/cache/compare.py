"""How two caches differ: in their manifests, in their shards and sequences, and in their values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.cache.opening import open_place
from logitcache.cache.reader import Cache
from logitcache.utils.progress import Report, silent


@dataclass(frozen=True)
class Values:
    """How the targets of sequences that both caches hold differ.

    Attributes:
        sequences: compared. Sequences in a shard that both caches have are equal, so they aren't compared.
        differing: how many of those have different targets.
        targets: positions compared.
        top1: share of positions where both have the same first token.
        overlap: mean share of the ids that are in both lists, out of the smaller K.
        largest: largest difference between the log-probs of an id that is in both lists, in nats.
        mean: mean difference, in nats.
    """

    sequences: int = 0
    differing: int = 0
    targets: int = 0
    top1: float | None = None
    overlap: float | None = None
    largest: float | None = None
    mean: float | None = None


@dataclass(frozen=True)
class Difference:
    """What ``diff`` found.

    Attributes:
        same: the caches have the same digest.
        fields: manifest fields that differ, by name: the first's value and the second's; None where absent.
        shards: how many files are ``common``, ``only_first``, ``only_second``.
        sequences: the same for sequences, compared by their digests.
        values: of the common sequences; None unless asked for.
    """

    same: bool
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    values: Values | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def diff(
    first: str | os.PathLike[str], second: str | os.PathLike[str], *, values: bool = False, progress: Report = silent
) -> Difference:
    """Compare two caches.

    Args:
        first, second: directories or URLs.
        values: also compare the targets of the sequences that both hold.
        progress: called as shards are read. Shards that both caches have are read only once, for their sequences.

    Raises:
        CacheNotFoundError, CacheFormatError, CorruptCacheError, StorageError, RemoteError: as when reading a cache.
    """
    caches = open_place(first), open_place(second)
    one, other = caches
    paths = {entry.path for entry in one.shards}, {entry.path for entry in other.shards}
    reader = _Reader(sum(len(part) for part in paths), progress)
    places = {digest: (index, s) for index, s, digest in reader.sequences(one)}
    common, only_second, kept = 0, 0, set[bytes]()
    pairs: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for index, s, digest in reader.sequences(other):
        if digest not in places:
            only_second += 1
            continue
        common += digest not in kept
        kept.add(digest)
        if values and one.shards[places[digest][0]].sha256 != other.shards[index].sha256:
            pairs.append((places[digest], (index, s)))
    return Difference(
        same=one.digest == other.digest,
        fields=_fields(one, other),
        shards=_counts(*paths),
        sequences={"common": common, "only_first": len(places) - common, "only_second": only_second},
        values=_compare(one, other, pairs) if values else None,
    )


class _Reader:
    def __init__(self, total: int, progress: Report) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def sequences(self, cache: Cache) -> Iterator[tuple[int, int, bytes]]:
        """(shard, sequence within it, digest) of every sequence. A shard that the table repeats is read once."""
        seen: set[str] = set()
        for index, entry in enumerate(cache.shards):
            if entry.path in seen:
                continue
            seen.add(entry.path)
            for s, digest in enumerate(cache.read_shard(index).sequence_digests_S16):
                yield index, s, digest.tobytes()
            self._done += 1
            self._progress("read", self._done, self._total, "shards")


def _fields(one: Cache, other: Cache) -> dict[str, tuple[Any, Any]]:
    a, b = (dict(_flat(cache.manifest.model_dump(mode="json", exclude_none=True))) for cache in (one, other))
    names = [name for name in dict.fromkeys([*a, *b]) if not name.startswith(("shard_table.", "calibration."))]
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item


def _counts(first: set[str], second: set[str]) -> dict[str, int]:
    return {
        "common": len(first & second),
        "only_first": len(first - second),
        "only_second": len(second - first),
    }


def _compare(one: Cache, other: Cache, pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> Values:
    differing = targets = hits = 0
    overlap, total, largest, entries = 0.0, 0.0, 0.0, 0
    # The pairs are in the order of the second cache; the first cache keeps a few decoded shards itself.
    for (index_a, s_a), (index_b, s_b) in pairs:
        a = one[int(one.shards.first_sequence_R1[index_a]) + s_a].targets
        b = other[int(other.shards.first_sequence_R1[index_b]) + s_b].targets
        # Samples of the tail and candidates may differ by chance, so only the ranked entries are compared.
        a, b = a.top(a.ranked), b.top(b.ranked)
        ids_a, ids_b = a.ids.numpy(), b.ids.numpy()
        gaps, shared_N = _gaps(ids_a, a.logprobs.numpy(), ids_b, b.logprobs.numpy())
        differing += bool(gaps.any() or (shared_N < min(a.k, b.k)).any())
        targets += len(a)
        hits += int((ids_a[:, 0] == ids_b[:, 0]).sum())
        overlap += float(shared_N.sum()) / min(a.k, b.k)
        total, entries = total + float(gaps.sum()), entries + gaps.size
        largest = max(largest, float(gaps.max(initial=0.0)))
    if not targets:
        return Values(len(pairs), differing)
    mean = total / entries if entries else None
    return Values(len(pairs), differing, targets, hits / targets, overlap / targets, largest, mean)


def _gaps(
    ids_a: NDArray[np.int64], logprobs_a: NDArray[np.float32], ids_b: NDArray[np.int64], logprobs_b: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Absolute differences of the log-probs whose ids are in both rows, and how many such ids each row has."""
    same_NKK = ids_a[:, :, None] == ids_b[:, None, :]
    n, i, j = np.nonzero(same_NKK)
    a, b = logprobs_a[n, i].astype(np.float64), logprobs_b[n, j].astype(np.float64)
    gaps = np.abs(np.where(a == b, 0.0, a - b))  # -inf in both is no difference
    return gaps, same_NKK.sum((1, 2))
