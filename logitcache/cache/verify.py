"""Check every file of a cache, in parallel, and report every fault, not only the first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from logitcache.cache.directory import check_is_cache, check_totals, read_table, read_tokenizer_file
from logitcache.cache.listing import ExtraFile, extra_files, extra_shards
from logitcache.cache.reader import Cache
from logitcache.errors import CorruptCacheError, LogitCacheError, MissingFileError, StorageError
from logitcache.format.content import content_faults
from logitcache.format.manifest import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    SHARDS_DIR,
    TABLE_NAME,
    TOKENIZER_DIR,
    Manifest,
    digest_line,
    manifest_digest,
    parse_manifest,
)
from logitcache.format.table import ShardEntry, ShardTable
from logitcache.stores.url import local_path
from logitcache.utils.files import SCRATCH_DIR, hash_checked, read_limited
from logitcache.utils.progress import Report, silent

_SHARDS_AT_ONCE = 1 << 10


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        path: the file, relative to the cache.
        kind: ``missing``, ``extra``, ``altered``, ``invalid`` or ``unreadable``.
        message: one sentence for people.
    """

    path: str
    kind: str
    message: str


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify_cache`` found.

    Attributes:
        digest: the cache's name, ``sha256:…``; None if the manifest can't be read.
        deep: True if shards were decoded too.
        files, bytes: how many were read and checked.
        faults: everything that is wrong, in the order of the files; empty for a correct cache.
    """

    digest: str | None
    deep: bool
    files: int
    bytes: int
    faults: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {"ok": self.ok, **asdict(self)}


def verify_cache(
    path: str | os.PathLike[str], deep: bool = False, workers: int | None = None, progress: Report = silent
) -> VerifyReport:
    """Check every file of a cache against the manifest and the shard table.

    Args:
        path: the cache's directory; ``logitcache.cache.opening.verify`` takes URLs too.
        deep: also decode every shard and check what it holds: counts, order, ids, masks, digests of the sequences,
            and that each distribution's mass is 1 within the encoding's bound.
        workers: threads; by default as many as the machine has processors.
        progress: called as shards are done.

    Raises:
        CacheNotFoundError: there is no finished cache at this place.
        ConfigError: the path is a URL.
    """
    return _Verification(
        local_path(path, "give it to logitcache.cache.opening.verify"), deep, workers or os.cpu_count() or 1, progress
    ).run()


class _Verification:
    """One check of one cache, and the faults found so far."""

    def __init__(self, root: Path, deep: bool, workers: int, progress: Report) -> None:
        self.root = root
        self.deep = deep
        self.workers = workers
        self.progress = progress
        self.faults: list[Fault] = []
        self.files = 0
        self.bytes = 0

    def run(self) -> VerifyReport:
        try:
            check_is_cache(self.root)
        except CorruptCacheError as error:
            self._add(MANIFEST_NAME, error)
            return self._report(None)
        try:
            raw = read_limited(self.root, MANIFEST_NAME, MAX_MANIFEST_BYTES)
        except LogitCacheError as error:
            self._add(MANIFEST_NAME, error)
            return self._report(None)
        self._count(len(raw))
        manifest = self._manifest(raw)
        if manifest is not None:
            self._check_extra(manifest)
            self._tokenizer(manifest)
            table = self._table(manifest)
            if table is not None:
                self._shards(manifest, table, manifest_digest(raw))
            else:
                self._shards_by_name()
        return self._report(manifest_digest(raw))

    def _manifest(self, raw: bytes) -> Manifest | None:
        try:
            line = read_limited(self.root, MANIFEST_DIGEST_NAME, 256)
            self._count(len(line))
            if line != digest_line(raw):
                message = f"{MANIFEST_NAME} and {MANIFEST_DIGEST_NAME} don't belong together: one of them was altered"
                self.faults.append(Fault(MANIFEST_NAME, "altered", message))
        except LogitCacheError as error:
            self._add(MANIFEST_DIGEST_NAME, error)
        try:
            return parse_manifest(raw, MANIFEST_NAME)
        except LogitCacheError as error:
            self._add(MANIFEST_NAME, error)
            return None

    def _check_extra(self, manifest: Manifest) -> None:
        self._add_extra(extra_files(self.root, manifest))
        if (self.root / SCRATCH_DIR).exists():
            message = "left by a run that was killed as it finished; the cache is complete: delete this directory"
            self.faults.append(Fault(SCRATCH_DIR, "extra", message))

    def _tokenizer(self, manifest: Manifest) -> None:
        for name, record in sorted(manifest.tokenizer.items()):
            try:
                self._count(len(read_tokenizer_file(self.root, name, record)))
            except LogitCacheError as error:
                self._add(f"{TOKENIZER_DIR}/{name}", error)

    def _table(self, manifest: Manifest) -> ShardTable | None:
        try:
            table = read_table(self.root, manifest)
            self._count(manifest.shard_table.bytes)
        except LogitCacheError as error:
            self._add(TABLE_NAME, error)
            return None
        try:
            check_totals(self.root, manifest, table)
        except LogitCacheError as error:
            self._add(TABLE_NAME, error)
        self._add_extra(extra_shards(self.root, table))
        return table

    def _shards(self, manifest: Manifest, table: ShardTable, digest: str) -> None:
        cache = Cache(self.root, manifest, digest, table)
        rows = _distinct(table)
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while batch := list(islice(rows, _SHARDS_AT_ONCE)):
                    found = pool.map(lambda row: self._shard(cache, *row), batch)
                    for (index, entry), faults in zip(batch, found, strict=True):
                        self.faults += faults
                        if all(fault.kind != "missing" for fault in faults):
                            self._count(entry.bytes)
                        self.progress("verify", index + 1, len(table), "shards")
            except BaseException:  # Ctrl-C must not wait for what is queued
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _shards_by_name(self) -> None:
        """Check shards without a table: a shard's name says what its digest must be."""
        paths = sorted((self.root / SHARDS_DIR).glob("*")) if (self.root / SHARDS_DIR).is_dir() else []
        named = [(f"{SHARDS_DIR}/{path.name}", path.name.partition(".")[0]) for path in paths]
        with ThreadPoolExecutor(self.workers) as pool:
            for done, found in enumerate(pool.map(lambda item: self._named_shard(*item), named), start=1):
                if isinstance(found, Fault):
                    self.faults.append(found)
                else:
                    self._count(found)
                self.progress("verify", done, len(named), "shards")

    def _named_shard(self, path: str, sha256: str) -> Fault | int:
        """What is wrong with a shard, or its size."""
        try:
            size = (self.root / path).lstat().st_size
            hash_checked(self.root, path, size, sha256)
        except OSError as error:
            return Fault(path, "unreadable", f"can't read {self.root / path}: {error.strerror}")
        except LogitCacheError as error:
            return _fault(path, error)
        return size

    def _shard(self, cache: Cache, index: int, entry: ShardEntry) -> list[Fault]:
        try:
            if not self.deep:
                hash_checked(self.root, entry.path, entry.bytes, entry.sha256)
                return []
            arrays = cache.read_shard(index)
        except LogitCacheError as error:
            return [_fault(entry.path, error)]
        return [Fault(entry.path, "invalid", message) for message in content_faults(arrays, cache.manifest)]

    def _add_extra(self, extra: list[ExtraFile]) -> None:
        self.faults += [Fault(file.path, "extra", file.message) for file in extra]

    def _count(self, size: int) -> None:
        self.files += 1
        self.bytes += size

    def _add(self, path: str, error: LogitCacheError) -> None:
        self.faults.append(_fault(path, error))

    def _report(self, digest: str | None) -> VerifyReport:
        return VerifyReport(digest, self.deep, self.files, self.bytes, self.faults)


def _distinct(table: ShardTable) -> Iterator[tuple[int, ShardEntry]]:
    """Rows with their index, without repeats: a table may list the same shard a million times."""
    seen: set[int] = set()
    for index, entry in enumerate(table):
        if hash(entry) not in seen:
            seen.add(hash(entry))
            yield index, entry


def _fault(path: str, error: LogitCacheError) -> Fault:
    kinds = ((MissingFileError, "missing"), (CorruptCacheError, "altered"), (StorageError, "unreadable"))
    kind = next((kind for failure, kind in kinds if isinstance(error, failure)), "invalid")
    return Fault(path, kind, str(error))
