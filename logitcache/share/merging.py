"""Merge caches: write one manifest over the shards of several. Shards are rewritten only if sequences are dropped.

Shape legend: S sequences of a shard.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from logitcache.cache.content import Content
from logitcache.cache.derive import CorpusDigest, derived_files, encode_part, keep_sequences
from logitcache.cache.directory import read_tokenizer_file
from logitcache.cache.location import Location
from logitcache.cache.opening import open_place
from logitcache.cache.provenance import differences, join_cards, merged_provenance
from logitcache.cache.reader import Cache
from logitcache.errors import ConfigError, MergeError
from logitcache.format.manifest import Card, Provenance, require_writer_features
from logitcache.format.table import ShardEntry
from logitcache.share.pushing import WORKERS, Transfer, check_tag, publish, set_tag
from logitcache.share.transfer import copy_shard, install_content, write_bytes
from logitcache.stores.store import open_writable
from logitcache.stores.url import as_url, parse_reference, public_name
from logitcache.utils.progress import Report, silent
from logitcache.utils.validation import first_fault

Duplicates = Literal["refuse", "drop", "keep"]


@dataclass(frozen=True)
class Merged:
    """The result of a merge.

    Attributes:
        transfer: where the new cache is, and which shards moved.
        sequences: how many the new cache has.
        duplicates: how many sequences equal an earlier one; None if they weren't compared.
    """

    transfer: Transfer
    sequences: int
    duplicates: int | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**self.transfer.to_json(), "sequences": self.sequences, "duplicates": self.duplicates}


def merge(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    duplicates: Duplicates = "refuse",
    card: Card | None = None,
    move_tag: bool = False,
    workers: int = WORKERS,
    progress: Report = silent,
) -> Merged:
    """Join finished caches of one teacher into one.

    Args:
        sources: directories or URLs; the new cache has their sequences in this order.
        out: a directory, or a URL as for ``push``. Shards that are there already aren't copied. If a collection holds
            the sources, and the result goes there, only small files are written.
        duplicates: what to do with sequences that equal an earlier one (same tokens, same mask). ``refuse`` raises an
            error; ``drop`` leaves out the later ones and rewrites their shards; ``keep`` keeps all and doesn't compare.
        card: notes for people; by default the texts of the sources' cards.
        move_tag: the tag in ``out`` may name another cache now, and is moved.
        workers: transfers at the same time.
        progress: called as shards are read and moved.

    Raises:
        MergeError: the caches differ (the message names each difference), or duplicates were found and refused.
        ConfigError: fewer than two caches, or the URL can't be used.
        CacheNotFoundError, CacheFormatError, CorruptCacheError: as when opening the sources.
        OutputExistsError, RemoteError, StorageError: as for ``push`` and ``pull``.
    """
    caches = [open_place(source) for source in sources]
    _check(caches, [public_name(source) for source in sources])
    plan = _Plan(caches, duplicates, progress)
    content = plan.content(card)
    url = as_url(out)
    if url is None:
        transfer = install_content(content, Path(out), f"merge {content.digest}", plan.write_shard, workers, progress)
    else:
        transfer = _publish(content, url, move_tag, workers, progress)
    return Merged(transfer, sum(entry.sequences for entry in content.entries), plan.duplicates)


def _publish(content: Content, url: str, move_tag: bool, workers: int, progress: Report) -> Transfer:
    reference = parse_reference(url)
    if reference.digest:
        raise ConfigError(f"{reference}: the digest isn't known before the merge; give a tag after the @")
    store = open_writable(reference, create=True)
    if reference.tag:
        check_tag(store, reference.tag, content.digest, move_tag)
    location = Location.in_collection(store, content.digest) if reference.tag else Location(store)
    transfer = publish(content, location, workers=workers, progress=progress)
    if reference.tag:
        set_tag(store, reference.tag, content.digest, move=move_tag)
    return transfer


def _check(caches: list[Cache], names: list[str]) -> None:
    if len(caches) < 2:
        raise ConfigError("merge joins two caches or more")
    seen: dict[str, str] = {}
    for cache, name in zip(caches, names, strict=True):
        if cache.digest in seen:
            raise MergeError(f"{seen[cache.digest]} and {name} are the same cache, {cache.digest}")
        seen[cache.digest] = name
        require_writer_features(cache.manifest, name)
    faults = [
        f"{names[0]} and {name}: {difference}"
        for cache, name in zip(caches[1:], names[1:], strict=True)
        for difference in differences(caches[0].manifest, cache.manifest)
    ]
    # A manifest doesn't say whether log-partition and logit deviation were kept, so one shard of each is read.
    kept = [bool(len(cache.shards)) and cache.read_shard(0).log_partition_N is not None for cache in caches]
    faults += [
        f"{names[0]} and {name}: stored statistics are {_has(kept[0])} in one and {_has(has)} in the other"
        for has, name in zip(kept[1:], names[1:], strict=True)
        if has != kept[0]
    ]
    if faults:
        raise MergeError("these caches don't belong together: " + "; ".join(faults))


def _has(kept: bool) -> str:
    return "there" if kept else "missing"


@dataclass(frozen=True, eq=False)
class _Origin:
    """Where a shard of the result comes from; ``keep_S`` marks the sequences to keep, None keeps all."""

    cache: Cache
    index: int
    keep_S: NDArray[np.bool_] | None = None


@dataclass
class _Plan:
    """The result's shards in order, and where each one comes from."""

    caches: list[Cache]
    mode: Duplicates
    progress: Report
    entries: list[ShardEntry] = field(default_factory=list)
    duplicates: int | None = None
    _origins: dict[str, _Origin] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.corpus_digest = self._keep_all() if self.mode == "keep" else self._compare()

    def content(self, card: Card | None) -> Content:
        """The new cache.

        Raises:
            ConfigError: the joined manifest can't be written.
        """
        first = self.caches[0]
        manifests = [cache.manifest for cache in self.caches]
        tokenizer = {
            name: read_tokenizer_file(first.root, name, item) for name, item in first.manifest.tokenizer.items()
        }
        parents = tuple(cache.digest for cache in self.caches)
        calibrations = [manifest.calibration for manifest in manifests]
        try:
            provenance: Provenance = merged_provenance(manifests, parents, self.corpus_digest, self.mode)
            raw, files = derived_files(
                first.manifest,
                provenance,
                self.entries,
                tokenizer,
                card=card or join_cards(manifests),
                calibration=calibrations[0] if all(item == calibrations[0] for item in calibrations) else None,
            )
        except ValidationError as error:
            raise ConfigError(f"the joined manifest can't be written: {first_fault(error)}") from error
        return Content(raw, files, self.entries, self.payload)

    def payload(self, entry: ShardEntry) -> bytes:
        """A shard's bytes."""
        origin = self._origins[entry.path]
        if origin.keep_S is None:
            return origin.cache._payload(entry)
        return self._cut(origin, origin.keep_S)[1]

    def write_shard(self, entry: ShardEntry, path: Path) -> None:
        """Write a shard into a new file."""
        origin = self._origins[entry.path]
        if origin.keep_S is None:
            copy_shard(origin.cache, entry, path)
        else:
            write_bytes(path, self.payload(entry))

    def _keep_all(self) -> str:
        digest = hashlib.sha256()
        for cache in self.caches:
            digest.update(f"{cache.manifest.provenance.corpus_digest}\n".encode("ascii"))
            for index, entry in enumerate(cache.shards):
                self._add(entry, _Origin(cache, index))
        return "sha256:" + digest.hexdigest()

    def _compare(self) -> str:
        """Read every shard, find repeated sequences, and compute the corpus digest."""
        corpus, seen, self.duplicates = CorpusDigest(), set[bytes](), 0
        total, done = sum(len(cache.shards) for cache in self.caches), 0
        for cache in self.caches:
            for index, entry in enumerate(cache.shards):
                arrays = cache.read_shard(index)
                keep_S = np.ones(arrays.sequences, np.bool_)
                for s, digest in enumerate(map(bytes, arrays.sequence_digests_S16)):
                    keep_S[s] = digest not in seen
                    seen.add(digest)
                self.duplicates += int((~keep_S).sum())
                if keep_S.all():
                    self._add(entry, _Origin(cache, index))
                    corpus.add(arrays)
                elif keep_S.any() and self.mode == "drop":
                    origin = _Origin(cache, index, keep_S)
                    self._add(self._cut(origin, keep_S)[0], origin)
                    corpus.add(keep_sequences(arrays, keep_S))
                done += 1
                self.progress("compare", done, total, "shards")
        if self.duplicates and self.mode == "refuse":
            raise MergeError(
                f"{self.duplicates:,} sequences occur more than once: --duplicates drop leaves out the later ones, "
                "--duplicates keep keeps all"
            )
        return corpus.value()

    def _cut(self, origin: _Origin, keep_S: NDArray[np.bool_]) -> tuple[ShardEntry, bytes]:
        arrays = keep_sequences(origin.cache.read_shard(origin.index), keep_S)
        return encode_part(arrays, origin.cache.manifest.encoding, origin.cache.manifest.shard_format)

    def _add(self, entry: ShardEntry, origin: _Origin) -> None:
        self.entries.append(entry)
        self._origins.setdefault(entry.path, origin)
