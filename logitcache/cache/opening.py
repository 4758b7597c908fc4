"""Open or verify a cache in a directory or at a URL."""

from __future__ import annotations

import os
from pathlib import Path

from logitcache.cache.reader import Cache, open_cache
from logitcache.cache.remote import open_remote
from logitcache.cache.signatures import check_trusted
from logitcache.cache.verify import VerifyReport, verify_cache
from logitcache.cache.verify_remote import verify_remote
from logitcache.signing.keys import TRUSTED_KEYS_VARIABLE
from logitcache.stores.url import as_url
from logitcache.utils.progress import Report, silent


def open_place(place: str | os.PathLike[str]) -> Cache:
    """Open a finished cache; ``logitcache.open`` is this.

    The manifest, the shard table and the tokenizer are checked now. A shard is checked when it is read.

    Args:
        place: the cache's directory, or a URL such as ``s3://bucket/name``.

    Raises:
        CacheNotFoundError: there is no finished cache.
        CacheFormatError: the cache has another format version, or needs a feature that this version doesn't have.
        CorruptCacheError: a file is missing, extra, cut off or altered.
        StorageError: the system, or a store, refused to read.
        SignatureError: ``LOGITCACHE_TRUSTED_KEYS`` names a file of public keys, and none of them signed the cache.
    """
    url = as_url(place)
    cache = open_cache(place) if url is None else open_remote(url)
    if trusted := os.environ.get(TRUSTED_KEYS_VARIABLE):
        check_trusted(cache, Path(trusted))
    return cache


def verify(
    place: str | os.PathLike[str], deep: bool = False, workers: int | None = None, progress: Report = silent
) -> VerifyReport:
    """Check every file of a cache against the manifest and the shard table.

    Args:
        place: the cache's directory, or a URL. From a URL every file is fetched, even if this machine has a copy.
        deep: also decode every shard and check what it holds, as ``verify_cache`` does.
        workers: threads; by default as many as the machine has processors.
        progress: called as shards are done.

    Raises:
        CacheNotFoundError: there is no finished cache at this place.
        RemoteError: the store refused, or didn't answer in time. The cache itself may still be correct.
        SignatureError: the cache is correct, but no trusted key signed it (see ``open_place``).
    """
    url = as_url(place)
    if url is None:
        report = verify_cache(place, deep, workers, progress)
    else:
        report = verify_remote(url, deep, workers or os.cpu_count() or 1, progress)
    if report.ok and os.environ.get(TRUSTED_KEYS_VARIABLE):
        open_place(place)
    return report
