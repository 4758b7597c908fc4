"""Fetch one file of a cache and check it. Its size and SHA-256 are known before the request."""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

from logitcache.errors import CorruptCacheError, MissingFileError
from logitcache.stores.retry import WrongAnswers, retry
from logitcache.stores.store import NotThereError, OversizeError, Store


def fetch(store: Store, path: str, size: int, sha256: str, file: BinaryIO) -> None:
    """Download into ``file`` from its beginning, and try again if the data arrives damaged.

    If it is wrong twice in the same way, the file in the store is wrong, and the error names it.

    Raises:
        MissingFileError: the store has no such file.
        CorruptCacheError: the store's file has another content.
        RemoteError: the store refused, or didn't answer in time.
    """
    address = store.address(path)
    wrong = WrongAnswers()

    def attempt() -> None:
        file.seek(0)
        file.truncate(size)
        digest = hashlib.sha256()

        def write(chunk: bytes) -> None:
            digest.update(chunk)
            file.write(chunk)

        try:
            store.download(path, size, write)
            found = digest.hexdigest() if file.tell() == size else f"{file.tell():,} bytes"
        except OversizeError:
            found = f"more than {size:,} bytes"
        if found != sha256:
            altered = f"{address} was altered: it should have {size:,} bytes and SHA-256 {sha256[:12]}…"
            raise wrong.error(found, CorruptCacheError(altered))

    try:
        retry(attempt, f"read {address}", store.policy)
    except NotThereError as error:
        raise MissingFileError(f"{address} is missing") from error


def fetch_bytes(store: Store, path: str, size: int, sha256: str) -> bytes:
    """Fetch a small file into memory. Raises what :func:`fetch` raises."""
    buffer = io.BytesIO()
    fetch(store, path, size, sha256, buffer)
    return buffer.getvalue()
