"""Read and write a cache's signatures, and check that a trusted key signed it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from logitcache.cache.reader import Cache
from logitcache.cache.remote import RemoteCache
from logitcache.errors import MissingFileError
from logitcache.signing.digest import SIGNATURES_DIR, is_signed, require_signed, signature_path
from logitcache.signing.keys import PublicKey, read_trusted
from logitcache.stores.store import NotThereError, Store
from logitcache.utils.atomic import write_atomically
from logitcache.utils.files import read_limited, storage_error

#: The most bytes of one signature; a signature of an Ed25519 key has about 300.
_MAX_BYTES = 4096
_NAME = re.compile(r"[0-9a-f]{16}\.sig")


def write_signature(root: Path, name: str, signature: bytes) -> None:
    """Write a signature into a cache's directory. Several processes may do this at the same time.

    Raises:
        StorageError: the system refused.
    """
    target = root / SIGNATURES_DIR / name
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error("write", target, error) from error
    write_atomically(target, signature)


def check_trusted(cache: Cache, trusted_keys: Path) -> None:
    """Check that a key of this file signed the cache.

    Raises:
        SignatureError: none did.
        ConfigError: the file holds no public key.
        RemoteError: the store refused, or didn't answer in time.
    """
    keys = read_trusted(trusted_keys)
    store = cache.store if isinstance(cache, RemoteCache) else None
    where = cache.url if isinstance(cache, RemoteCache) else str(cache.root)
    require_signed(cache.digest, keys, list(_signatures(cache, keys, store)), where)


def _signatures(cache: Cache, keys: list[PublicKey], store: Store | None) -> Iterator[tuple[PublicKey, bytes]]:
    for key in keys:
        try:
            yield key, read_limited(cache.root, f"{SIGNATURES_DIR}/{key.name}.sig", _MAX_BYTES)
            continue
        except MissingFileError:
            if store is None:
                continue
        try:
            signature = store.get(signature_path(cache.digest, key), _MAX_BYTES)
        except NotThereError:
            continue
        if is_signed(cache.digest, key, signature):
            write_signature(cache.root, f"{key.name}.sig", signature)
        yield key, signature


def push_signatures(cache: Cache, store: Store) -> None:
    """Copy a cache's signatures, from its directory and its store, to another store.

    Raises:
        RemoteError: a store refused, or didn't answer in time.
    """
    for name, signature in _collect(cache).items():
        store.put(f"{SIGNATURES_DIR}/{cache.digest.removeprefix('sha256:')}/{name}", signature)


def pull_signatures(cache: Cache, root: Path) -> None:
    """Copy a cache's signatures, from its directory and its store, to a copy of the cache.

    Raises:
        RemoteError: the store refused, or didn't answer in time.
        StorageError: the system refused.
    """
    for name, signature in _collect(cache).items():
        write_signature(root, name, signature)


def _collect(cache: Cache) -> dict[str, bytes]:
    found = _read_local(cache.root)
    store = cache.store if isinstance(cache, RemoteCache) else None
    if store is not None and store.writable:  # other stores can't be listed
        for item in store.list(f"{SIGNATURES_DIR}/{cache.digest.removeprefix('sha256:')}/"):
            name = item.path.rpartition("/")[2]
            if _NAME.fullmatch(name):
                found[name] = store.get(item.path, _MAX_BYTES)
    return found


def _read_local(root: Path) -> dict[str, bytes]:
    directory = root / SIGNATURES_DIR
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    return {name: read_limited(root, f"{SIGNATURES_DIR}/{name}", _MAX_BYTES) for name in names if _NAME.fullmatch(name)}
