"""Verify a cache at a URL: every file is fetched from the store and checked, even if this machine has a copy."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field

from logitcache.cache.location import Location, find
from logitcache.cache.reader import check_content
from logitcache.cache.verify import Fault, VerifyReport
from logitcache.errors import CorruptCacheError, LogitCacheError, MissingFileError, RemoteError
from logitcache.format.content import content_faults
from logitcache.format.formats import decode_shard
from logitcache.format.manifest import MANIFEST_NAME, TABLE_NAME, TOKENIZER_DIR, Manifest, parse_manifest
from logitcache.format.table import ShardEntry, ShardTable
from logitcache.stores.fetch import fetch_bytes
from logitcache.stores.store import Store
from logitcache.stores.url import parse_reference
from logitcache.utils.parallel import run_parallel
from logitcache.utils.progress import Report

_KINDS = ((MissingFileError, "missing"), (CorruptCacheError, "altered"))


def verify_remote(url: str, deep: bool, workers: int, progress: Report) -> VerifyReport:
    """Same as ``verify_cache``. Other objects under the URL aren't faults: they may belong to other caches.

    Raises:
        CacheNotFoundError: there is no finished cache with this name.
        RemoteError: the store refused, or didn't answer in time. The cache itself may still be correct.
    """
    reference = parse_reference(url)
    store = Store(reference.url)
    try:
        found = find(reference, store)
    except CorruptCacheError as error:
        return VerifyReport(None, deep, 0, 0, [_fault(MANIFEST_NAME, error)])
    work = _Work(found.location, deep, workers, progress, files=2, bytes=len(found.raw))
    try:
        work.run(parse_manifest(found.raw, MANIFEST_NAME))
    except RemoteError:
        raise
    except LogitCacheError as error:
        work.faults.append(_fault(MANIFEST_NAME, error))
    return VerifyReport(found.digest, deep, work.files, work.bytes, work.faults)


@dataclass
class _Work:
    location: Location
    deep: bool
    workers: int
    progress: Report
    files: int
    bytes: int
    faults: list[Fault] = field(default_factory=list)

    def run(self, manifest: Manifest) -> None:
        for name, record in sorted(manifest.tokenizer.items()):
            self._file(f"{TOKENIZER_DIR}/{name}", record.bytes, record.sha256)
        payload = self._file(TABLE_NAME, manifest.shard_table.bytes, manifest.shard_table.sha256)
        if payload is None:
            return
        try:
            table = ShardTable(payload, manifest.shard_format, TABLE_NAME)
        except LogitCacheError as error:
            self.faults.append(_fault(TABLE_NAME, error))
            return
        self._shards(manifest, table)

    def _shards(self, manifest: Manifest, table: ShardTable) -> None:
        done = 0
        faults: list[Fault] = []

        def finished(entry: ShardEntry, found: list[Fault]) -> None:
            nonlocal done
            done += 1
            self.files, self.bytes = self.files + 1, self.bytes + entry.bytes
            faults.extend(found)
            self.progress("verify", done, len(table), "shards")

        run_parallel(table, lambda entry: self._shard(entry, manifest), self.workers, finished)
        self.faults += sorted(faults, key=lambda fault: fault.path)

    def _shard(self, entry: ShardEntry, manifest: Manifest) -> list[Fault]:
        location = self.location
        try:
            payload = fetch_bytes(location.store, location.path(entry.path), entry.bytes, entry.sha256)
            if not self.deep:
                return []
            arrays = decode_shard(payload, manifest.shard_format)
            check_content(arrays, entry, manifest, location.store.address(entry.path))
        except RemoteError:
            raise
        except LogitCacheError as error:
            return [_fault(entry.path, error)]
        return [Fault(entry.path, "invalid", message) for message in content_faults(arrays, manifest)]

    def _file(self, relative: str, size: int, sha256: str) -> builtins.bytes | None:
        try:
            payload = fetch_bytes(self.location.store, self.location.path(relative), size, sha256)
        except RemoteError:
            raise
        except LogitCacheError as error:
            self.faults.append(_fault(relative, error))
            return None
        self.files, self.bytes = self.files + 1, self.bytes + size
        return payload


def _fault(path: str, error: LogitCacheError) -> Fault:
    kind = next((kind for failure, kind in _KINDS if isinstance(error, failure)), "invalid")
    return Fault(path, kind, str(error))
