"""A cache at a URL, opened like one on disk: small files now, each shard when it is wanted, through the local cache."""

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
from logitcache.cache.location import Found, find
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

#: Shards fetched at a time, ahead of the reader.
PREFETCH_THREADS = 4


class RemoteCache(Cache):
    """A cache whose shards are at a URL. Threads may share it; a copy in another process opens anew.

    Attributes:
        url: without tag and digest, without user and password.
        store: the objects under the URL; None in offline mode.
    """

    def __init__(self, opened: Cache, reference: Reference, store: Store | None, local: LocalCache) -> None:
        """``opened``: its small files, here; ``store``: None means offline."""
        super().__init__(opened.root, opened.manifest, opened.digest, opened.shards)
        self.url = public_url(reference.url)
        self.store = store
        self._reference = reference
        self._local = local
        self._threads: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    @property
    def address(self) -> str:
        """Its URL, pinned to its digest."""
        return f"{self.url}@{self.digest}"

    def shard_address(self, entry: ShardEntry) -> str:
        """The shard's URL."""
        return f"{self.url}/{entry.path}"

    def prefetch(self, indices: Iterable[int]) -> None:
        """Begin to fetch shards that will be read soon. A failure shows when the shard is read."""
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
        """Write a shard into a new file, from the local cache if it is there, else from the store; the local cache
        stays as it is. Raises as reading a shard does."""
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
                self._stop_prefetching()  # it would fail as well, one long wait after another
                raise
        try:
            return pool.read(entry.path, entry.bytes, entry.sha256, None)
        except MissingFileError as error:
            raise OfflineError(
                f"{self.shard_address(entry)} isn't on this machine, and offline mode asks no store: "
                "unset LOGITCACHE_OFFLINE, or `logitcache pull` the cache first"
            ) from error

    def read_lengths(self, index: int) -> NDArray[np.int64]:
        """Tokens of each sequence of a shard. The shard has to come here anyway, to be trained on: it is read whole."""
        lengths_S: NDArray[np.int64] = np.diff(self.read_shard(index).offsets_S1)
        return lengths_S

    def __reduce__(self) -> tuple[Any, ...]:
        # Here, and only here, with what the URL says of user and password: another process has to log in as well.
        return open_remote, (f"{self._reference.url}@{self.digest}", self._local.settings)

    def __repr__(self) -> str:
        return super().__repr__().replace(repr(str(self.root)), repr(self.url), 1)


def open_remote(address: str, settings: LocalSettings | None = None) -> RemoteCache:
    """Open a finished cache at a URL. Same errors as ``open_cache``, and those below.

    Args:
        address: ``s3://bucket/name``, ``s3://bucket/caches@latest``, ``https://host/name@sha256:…`` and so on.
        settings: of the local cache; from the environment if left out.

    Raises:
        RemoteError: the store refused, or didn't answer in time.
        OfflineError: the cache was never opened here, and the network was ruled out.
    """
    reference = parse_reference(address)
    local = LocalCache(settings or LocalSettings.from_environment())
    if local.settings.offline:
        store, digest = None, _recalled(reference, local)
    else:
        store = Store(reference.url)
        digest = _looked_up(reference, store, local)
    with local.locked(digest) as directory:
        opened = _open_kept(directory, digest, reference, store)
    return RemoteCache(opened, reference, store, local)


def keep_small_files(found: Found, directory: Path) -> None:
    """Write everything of a cache but its shards into a directory, the manifest last.

    Raises:
        CorruptCacheError: a file of the cache is missing or altered.
        CacheFormatError: the manifest isn't one that this version reads.
        RemoteError: the store refused, or didn't answer in time.
        StorageError: this machine did.
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


def _open_kept(directory: Path, digest: str, reference: Reference, store: Store | None) -> Cache:
    """Open the small files here; get them first, or once more if they are damaged."""
    if (directory / MANIFEST_NAME).exists():
        try:
            opened = open_cache(directory, filled_later=True)
            if opened.digest == digest:
                return opened
        except CorruptCacheError:
            if store is None:
                raise
        shutil.rmtree(directory)
    if store is None:
        raise OfflineError(f"{reference} isn't on this machine, and offline mode asks no store")
    keep_small_files(find(Reference(reference.url, digest=digest), store), directory)
    return open_cache(directory, filled_later=True)


def _looked_up(reference: Reference, store: Store, local: LocalCache) -> str:
    """The digest behind a name. A pinned one whose files are here costs no request."""
    if reference.digest and (local.directory(reference.digest) / MANIFEST_NAME).exists():
        return reference.digest
    digest = find(reference, store).digest
    local.remember(reference, digest)
    return digest


def _recalled(reference: Reference, local: LocalCache) -> str:
    digest = local.recall(reference)
    if digest is None:
        raise OfflineError(f"{reference} was never opened on this machine, and offline mode asks no store")
    return digest


def _fetch_shard(store: Store, entry: ShardEntry, file: BinaryIO) -> None:
    fetch(store, entry.path, entry.bytes, entry.sha256, file)
