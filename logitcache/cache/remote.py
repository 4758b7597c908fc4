"""A cache at a URL. Opening it fetches its small files; a shard is fetched into the local cache when it is needed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from logitcache.cache.directory import MAX_TABLE_BYTES
from logitcache.cache.location import FoundCache, find
from logitcache.cache.publish import remove_scratch
from logitcache.cache.reader import Cache, open_cache
from logitcache.errors import CorruptCacheError, MissingFileError, OfflineError, RemoteError
from logitcache.format.manifest import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    TABLE_NAME,
    TOKENIZER_DIR,
    digest_line,
    parse_manifest,
)
from logitcache.format.table import ShardEntry
from logitcache.stores.fetch import fetch, fetch_bytes
from logitcache.stores.local_cache import LocalCache, LocalSettings
from logitcache.stores.store import Store
from logitcache.stores.url import Reference, parse_reference, public_url
from logitcache.utils.atomic import write_file

#: Shards fetched at the same time, ahead of the reader.
PREFETCH_THREADS = 4


class RemoteCache(Cache):
    """A cache whose shards are at a URL. Threads may share it; a copy in another process opens it again.

    Attributes:
        url: without tag, digest, user and password.
        store: the objects under the URL; None in offline mode.
    """

    def __init__(self, opened: Cache, reference: Reference, store: Store | None, local: LocalCache) -> None:
        """``opened``: the directory of its small files, opened as a cache; ``store``: None in offline mode."""
        super().__init__(opened.root, opened.manifest, opened.digest, opened.shards)
        self.url = public_url(reference.url)
        self.store = store
        self._reference = reference
        self._local = local
        self._threads: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    @property
    def address(self) -> str:
        """Its URL, with ``@`` and its digest."""
        return f"{self.url}@{self.digest}"

    def shard_address(self, entry: ShardEntry) -> str:
        """The shard's URL."""
        return f"{self.url}/{entry.path}"

    def prefetch(self, indices: Iterable[int]) -> None:
        """Start to fetch shards that will be read soon. A failure is raised when the shard is read."""
        store = self.store
        if store is None or store.forked:
            return
        with self._starting:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(PREFETCH_THREADS, thread_name_prefix="logitcache-fetch")
            for index in indices:
                self._threads.submit(self._ensure, store, self.shards[index])

    def _stop_prefetching(self) -> None:
        with self._starting:
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None

    def fetch_to(self, entry: ShardEntry, path: Path) -> None:
        """Write a shard into a new file, from the local cache if it is there, else from the store.

        The local cache stays as it is. Raises what reading a shard raises.
        """
        if self.store is None:
            path.write_bytes(self._payload(entry))
            return
        try:
            path.write_bytes(self._local.pool.read(entry.path, entry.bytes, entry.sha256, None))
        except CorruptCacheError:
            with open(path, "w+b") as file:
                _fetch_shard(self.store, entry, file)

    def _ensure(self, store: Store, entry: ShardEntry) -> None:
        self._local.pool.ensure(entry.path, entry.bytes, partial(_fetch_shard, store, entry))

    def _payload(self, entry: ShardEntry) -> bytes:
        pool, store = self._local.pool, self.store
        if store is not None:
            try:
                return pool.read(entry.path, entry.bytes, entry.sha256, partial(_fetch_shard, store, entry))
            except RemoteError:
                self._stop_prefetching()  # it would fail too, after a long wait for each shard
                raise
        try:
            return pool.read(entry.path, entry.bytes, entry.sha256, None)
        except MissingFileError as error:
            raise OfflineError(
                f"{self.shard_address(entry)} isn't on this machine, and offline mode asks no store: "
                "unset LOGITCACHE_OFFLINE, or `logitcache pull` the cache first"
            ) from error

    def read_lengths(self, index: int) -> NDArray[np.int64]:
        """Number of tokens of each sequence of a shard. Training needs the shard anyway, so all of it is fetched."""
        lengths_S: NDArray[np.int64] = np.diff(self.read_shard(index).offsets_S1)
        return lengths_S

    def __reduce__(self) -> tuple[Any, ...]:
        # Only here does the URL keep its user and password: another process has to log in too.
        return open_remote, (f"{self._reference.url}@{self.digest}", self._local.settings)

    def __repr__(self) -> str:
        return super().__repr__().replace(repr(str(self.root)), repr(self.url), 1)


def open_remote(address: str, settings: LocalSettings | None = None) -> RemoteCache:
    """Open a finished cache at a URL.

    Args:
        address: ``s3://bucket/name``, ``s3://bucket/caches@latest``, ``https://host/name@sha256:…`` and so on.
        settings: of the local cache; by default from the environment.

    Raises:
        RemoteError: the store refused, or didn't answer in time.
        OfflineError: offline mode is on, and the cache was never opened on this machine.
        CacheNotFoundError, CacheFormatError, CorruptCacheError, StorageError: as ``open_cache`` raises them.
    """
    reference = parse_reference(address)
    local = LocalCache(settings or LocalSettings.from_environment())
    if local.settings.offline:
        store, digest = None, _recall_digest(reference, local)
    else:
        store = Store(reference.url)
        digest = _find_digest(reference, store, local)
    with local.locked(digest) as directory:
        opened = _open_small_files(directory, digest, reference, store)
    return RemoteCache(opened, reference, store, local)


def write_small_files(found: FoundCache, directory: Path) -> None:
    """Write all files of a cache except its shards into a directory, the manifest last.

    Raises:
        CorruptCacheError: a file of the cache is missing or altered.
        CacheFormatError: this version can't read the manifest.
        RemoteError: the store refused, or didn't answer in time.
        StorageError: the system refused.
    """
    location = found.location
    manifest = parse_manifest(found.raw, f"{location.url}/{MANIFEST_NAME}")
    records = {f"{TOKENIZER_DIR}/{name}": record for name, record in manifest.tokenizer.items()}
    for relative, record in (*records.items(), (TABLE_NAME, manifest.shard_table)):
        if not 0 <= record.bytes <= MAX_TABLE_BYTES:
            raise CorruptCacheError(f"{location.url}/{relative}: {record.bytes:,} bytes can't be right")
        payload = fetch_bytes(location.store, location.path(relative), record.bytes, record.sha256)
        write_file(directory, relative, payload)
    write_file(directory, MANIFEST_DIGEST_NAME, digest_line(found.raw))
    write_file(directory, MANIFEST_NAME, found.raw)
    remove_scratch(directory)


def _open_small_files(directory: Path, digest: str, reference: Reference, store: Store | None) -> Cache:
    """Open the local copy of the small files; fetch them if they are missing or damaged."""
    if (directory / MANIFEST_NAME).exists():
        try:
            opened = open_cache(directory, fetched_later=True)
            if opened.digest == digest:
                return opened
        except CorruptCacheError:
            if store is None:
                raise
        shutil.rmtree(directory)
    if store is None:
        raise OfflineError(f"{reference} isn't on this machine, and offline mode asks no store")
    write_small_files(find(Reference(reference.url, digest=digest), store), directory)
    return open_cache(directory, fetched_later=True)


def _find_digest(reference: Reference, store: Store, local: LocalCache) -> str:
    """The digest that a reference names. If it names a digest whose files are here, no request is made."""
    if reference.digest and (local.directory(reference.digest) / MANIFEST_NAME).exists():
        return reference.digest
    digest = find(reference, store).digest
    local.remember(reference, digest)
    return digest


def _recall_digest(reference: Reference, local: LocalCache) -> str:
    digest = local.recall(reference)
    if digest is None:
        raise OfflineError(f"{reference} was never opened on this machine, and offline mode asks no store")
    return digest


def _fetch_shard(store: Store, entry: ShardEntry, file: BinaryIO) -> None:
    fetch(store, entry.path, entry.bytes, entry.sha256, file)
