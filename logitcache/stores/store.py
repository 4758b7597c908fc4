"""Object stores by URL, through obstore. Failures are either transient, and retried, or permanent.

obstore is a binding of Rust's ``object_store``: S3, Google, Azure, HTTP and local files in one wheel without other
packages, with conditional writes where the service has them. logitcache retries itself, because it also retries when a
body is cut off.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from logitcache.errors import CacheFormatError, ConfigError, RemoteError
from logitcache.stores.connect import STATUS, connect, is_forked, short_reason
from logitcache.stores.retry import RetryPolicy, TransientError, retry
from logitcache.stores.url import Reference, public_url
from logitcache.utils.parallel import StoppedError, check_stopped

if TYPE_CHECKING:
    from datetime import datetime

T = TypeVar("T")
#: Larger uploads go in parts of this many bytes; each part is one request, so its time is bounded.
_PART_BYTES = 8 << 20
#: A request that doesn't read a file may take this many times ``RetryPolicy.stall``.
_SMALL_REQUEST = 5
_BULK_SECONDS = 86_400.0
_TRANSIENT_STATUS = {408, 425, 429}


class NotThereError(Exception):
    """There is no object at this path."""


class TakenError(Exception):
    """A conditional write found another object, or another version of it."""


class OversizeError(Exception):
    """An object has more bytes than expected."""


@dataclass(frozen=True)
class Object:
    """One object of a listing; ``path`` is relative to the store's URL."""

    path: str
    size: int
    modified: datetime


class Store:
    """The objects under one URL. Threads may share it. Paths are relative, with ``/`` between the parts.

    Every method raises RemoteError when the store refuses or doesn't answer in time.
    """

    def __init__(self, url: str, policy: RetryPolicy | None = None, *, create: bool = False) -> None:
        """Prepare the connection; no request is made yet.

        Args:
            url: ``s3://bucket/prefix``, ``gs://…``, ``az://container/prefix``, ``http(s)://…``, ``file:///directory``
                or ``hf://datasets/OWNER/NAME``.
            policy: how to retry; by default from the environment.
            create: make the directory of a ``file://`` URL.

        Raises:
            MissingDependencyError: obstore isn't installed.
            ConfigError: the URL isn't one of a store.
            CacheNotFoundError: the directory of a ``file://`` URL doesn't exist.
            OfflineError: ``LOGITCACHE_OFFLINE`` is set.
        """
        self.url = public_url(url)
        self.scheme = url.partition("://")[0]
        self.policy = policy or RetryPolicy.from_environment()
        # A whole shard may take long, and _stream checks its speed; every other request is small.
        self._store = connect(url, self.policy, create, self.policy.stall * _SMALL_REQUEST)
        self._bulk = connect(url, self.policy, create, _BULK_SECONDS)

    @property
    def forked(self) -> bool:
        """True in a fork of a process that used a store. The network library's threads don't exist in a fork."""
        return is_forked()

    @property
    def writable(self) -> bool:
        """False where only reading is supported."""
        return self.scheme not in ("http", "https", "hf")

    def get(self, path: str, limit: int) -> bytes:
        """The content of a small object.

        Raises:
            NotThereError: there is none.
            CacheFormatError: it has more than ``limit`` bytes.
        """

        def read() -> bytes:
            parts: list[bytes] = []
            self._stream(path, limit, parts.append)
            return b"".join(parts)

        try:
            return self._retry(read, "read", path)
        except OversizeError as error:
            raise CacheFormatError(f"{self.address(path)} has more than {limit:,} bytes: it is no such file") from error

    def download(self, path: str, size: int, write: Callable[[bytes], object]) -> None:
        """Try once to read an object of a known size, in chunks. The caller retries, because it has to rewind its file.

        Raises:
            NotThereError: there is none.
            OversizeError: it is larger.
            TransientError: cut off, stalled, too slow, or another failure that the next try may not have.
        """
        with self._errors("read", path):
            self._stream(path, size, write)

    def put(self, path: str, content: bytes | Path) -> None:
        """Write an object. Readers see the complete object or none."""
        multipart = len(content) > _PART_BYTES if isinstance(content, bytes) else None
        options = {"use_multipart": multipart, "chunk_size": _PART_BYTES, "max_concurrency": 2}
        self._retry(lambda: self._store.put(path, content, **options), "write", path)

    def create(self, path: str, content: bytes) -> bool:
        """Write a small object only if there is none; False if one with the same content is there already.

        Raises:
            TakenError: an object with another content is there.
        """
        return self._put_if(path, content, "create")

    def replace(self, path: str, content: bytes, old: bytes) -> bool:
        """Overwrite a small object only if its content is still ``old``; False if its content is ``content`` already.

        Raises:
            TakenError: it has another content now, or is gone.
        """
        try:
            found = self._retry(lambda: self._store.get(path), "read", path)
            current, version = bytes(found.bytes()), {"e_tag": found.meta["e_tag"]}
        except NotThereError:
            raise TakenError(path) from None
        if current == content:
            return False
        if current != old:
            raise TakenError(path)
        if self.scheme == "file":  # local files have no compare-and-swap, so only one process may move a tag
            self.put(path, content)
            return True
        return self._put_if(path, content, version)

    def size(self, path: str) -> int | None:
        """An object's size in bytes; None if there is none."""
        head = self._head(path)
        return None if head is None else int(head["size"])

    def modified(self, path: str) -> datetime | None:
        """When an object was written; None if there is none."""
        head = self._head(path)
        return None if head is None else head["last_modified"]

    def list(self, prefix: str) -> Iterator[Object]:
        """All objects under a prefix that ends with ``/`` (or is empty)."""

        def collect() -> builtins.list[Object]:
            found = self._store.list(prefix.rstrip("/") or None)
            return [Object(item["path"], item["size"], item["last_modified"]) for chunk in found for item in chunk]

        yield from self._retry(collect, "list", prefix)

    def folders(self, prefix: str) -> builtins.list[str]:
        """Names of the folders one level below a prefix that ends with ``/`` (or is empty)."""

        def collect() -> builtins.list[str]:
            found = self._store.list_with_delimiter(prefix.rstrip("/") or None)
            return [name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"]]

        return self._retry(collect, "list", prefix)

    def delete(self, path: str) -> None:
        """Remove an object, if there is one."""
        try:
            self._retry(lambda: self._store.delete(path), "delete", path)
        except NotThereError:
            return

    def address(self, path: str) -> str:
        """The URL of an object, for messages."""
        return f"{self.url}/{path}" if path else self.url

    def _head(self, path: str) -> Any:
        try:
            return self._retry(lambda: self._store.head(path), "look up", path)
        except NotThereError:
            return None

    def _put_if(self, path: str, content: bytes, mode: Any) -> bool:
        try:
            self._retry(lambda: self._store.put(path, content, mode=mode, use_multipart=False), "write", path)
        except TakenError:
            # Perhaps an earlier try of ours wrote it, and its answer was lost.
            if self._holds(path, content):
                return False
            raise
        return True

    def _holds(self, path: str, content: bytes) -> bool:
        try:
            return self.size(path) == len(content) and self.get(path, len(content)) == content
        except NotThereError:
            return False

    def _stream(self, path: str, limit: int, write: Callable[[bytes], object]) -> None:
        started = time.monotonic()
        result = self._bulk.get(path)
        received, expected = 0, int(result.meta["size"])
        allowed = self.policy.time_for(min(limit, expected))
        for chunk in result.stream(min_chunk_size=1):
            received += len(chunk)
            if received > limit:
                raise OversizeError(path)
            write(bytes(chunk))
            check_stopped()
            if time.monotonic() - started > allowed:
                raise TransientError(f"too slow: {received:,} bytes in {allowed:.0f} s")
        if received < expected:
            raise TransientError(f"cut off after {received:,} of {expected:,} bytes")

    def _retry(self, action: Callable[[], T], verb: str, path: str) -> T:
        def attempt() -> T:
            with self._errors(verb, path):
                return action()

        return retry(attempt, f"{verb} {self.address(path)}", self.policy)

    @contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        if self.forked:
            raise RemoteError(
                f"can't {verb} {self.address(path)} in a forked process: start data-loader workers with "
                'multiprocessing_context="spawn", or use num_workers=0 (shards are prefetched in threads anyway)'
            )
        try:
            yield
        except FileNotFoundError as error:
            raise NotThereError(path) from error
        except (RemoteError, TransientError, OversizeError, StoppedError):
            raise
        except Exception as error:
            raise _convert_error(error, f"can't {verb} {self.address(path)}", path) from error


def _convert_error(error: Exception, what: str, path: str) -> Exception:
    """Our error for one of obstore's errors."""
    from obstore import exceptions

    text = str(error)
    status = STATUS.search(text)
    reason = short_reason(text)
    if isinstance(error, (exceptions.AlreadyExistsError, exceptions.PreconditionError)):
        return TakenError(path)
    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)):
        return RemoteError(f"{what}: access denied ({reason}); check the credentials and what they allow")
    if isinstance(error, exceptions.GenericError) or not isinstance(error, exceptions.BaseError):
        code = int(status[1]) if status else None
        if code in (401, 403):
            return RemoteError(f"{what}: access denied ({reason}); check the credentials and what they allow")
        if code is not None and 400 <= code < 500 and code not in _TRANSIENT_STATUS:
            return TakenError(path) if code in (409, 412) else RemoteError(f"{what}: {reason}")
        if isinstance(error, (ValueError, TypeError)) or "LocalFileSystem" in text:
            return RemoteError(f"{what}: {reason}")
        return TransientError(reason)
    return RemoteError(f"{what}: {reason}")


def open_writable(reference: Reference, *, create: bool = False) -> Store:
    """The store of a reference, if it can be written.

    Raises:
        ConfigError: it can only be read.
        CacheNotFoundError: the directory of a ``file://`` URL doesn't exist, and ``create`` is False.
    """
    store = Store(reference.url, create=create)
    if not store.writable:
        raise ConfigError(f"{store.url}: {store.scheme}:// can only be read; push to s3://, gs://, az:// or file://")
    return store
