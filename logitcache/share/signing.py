"""Sign a cache in a directory or at a URL."""

from __future__ import annotations

import os
from pathlib import Path

from logitcache.cache.opening import open_place
from logitcache.cache.signatures import write_signature
from logitcache.signing.digest import sign_digest, signature_path
from logitcache.signing.keys import PublicKey
from logitcache.stores.store import open_writable
from logitcache.stores.url import as_url, parse_reference


def sign(cache: str | os.PathLike[str], key_file: Path) -> PublicKey:
    """Sign a cache, and write the signature to ``signatures/`` in its directory or its store.

    Raises:
        ConfigError: the file holds no private key, or the store can only be read.
        CacheNotFoundError, CacheFormatError, CorruptCacheError, RemoteError, StorageError: as when opening the cache.
    """
    opened = open_place(cache)
    key, signature = sign_digest(opened.digest, key_file)
    url = as_url(cache)
    if url is None:
        write_signature(opened.root, f"{key.name}.sig", signature)
    else:
        open_writable(parse_reference(url)).put(signature_path(opened.digest, key), signature)
    return key
