"""Bring one file of a cache here, checked: size and SHA-256 are known before the first byte is asked for."""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

from logitcache.errors import CorruptCacheError, MissingFileError
from logitcache.stores.retry import WrongAnswers, retried
from logitcache.stores.store import NotThereError, OversizeError, Store


def fetch(store: Store, path: str, size: int, sha256: str, file: BinaryIO) -> None:
    """Download into ``file`` from its beginning, and try again what arrives damaged.

    What is wrong twice in the same way is what the store holds: then the file is named.

    Raises:
        MissingFileError: the store has no such file.
        CorruptCacheError: it has another.
        RemoteError: it refused, or didn't answer in time.
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
        retried(attempt, f"read {address}", store.policy)
    except NotThereError as error:
        raise MissingFileError(f"{address} is missing") from error


def fetch_bytes(store: Store, path: str, size: int, sha256: str) -> bytes:
    """The same into memory, for the small files. Raises as :func:`fetch` does."""
    buffer = io.BytesIO()
    fetch(store, path, size, sha256, buffer)
    return buffer.getvalue()
