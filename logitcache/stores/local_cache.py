"""The local cache of remote caches: their small files by digest, their shards in a pool, and the names in use."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from logitcache.errors import ConfigError
from logitcache.stores.connect import is_offline
from logitcache.stores.pool import ShardPool
from logitcache.stores.url import Reference
from logitcache.utils.atomic import write_atomically
from logitcache.utils.files import storage_error

DEFAULT_LIMIT = 64 << 30
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class LocalSettings:
    """Settings of the local cache.

    Attributes:
        directory: on a local disk; all processes of the node share it.
        limit: most bytes of shards to keep.
        offline: use only what is there, and make no requests.
    """

    directory: Path
    limit: int = DEFAULT_LIMIT
    offline: bool = False

    @classmethod
    def from_environment(cls) -> LocalSettings:
        """Read ``LOGITCACHE_CACHE_DIR``, ``LOGITCACHE_CACHE_LIMIT`` (such as ``200GB``) and ``LOGITCACHE_OFFLINE``.

        Raises:
            ConfigError: the limit isn't a size.
        """
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        directory = Path(os.environ.get("LOGITCACHE_CACHE_DIR") or f"{home}/logitcache").expanduser()
        limit = os.environ.get("LOGITCACHE_CACHE_LIMIT")
        return cls(directory, parse_size(limit, "LOGITCACHE_CACHE_LIMIT") if limit else DEFAULT_LIMIT, is_offline())


class LocalCache:
    """The local cache in the directory that :class:`LocalSettings` names.

    Raises:
        StorageError: the directory can't be made.
    """

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings
        self.pool = ShardPool(settings.directory, settings.limit)
        self._caches = settings.directory / "caches"
        self._names = settings.directory / "names"
        for directory in (self._caches, self._names):
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage_error("make", directory, error) from error

    def directory(self, digest: str) -> Path:
        """Where the small files of a cache are, or will be."""
        return self._caches / digest.removeprefix("sha256:")

    @contextmanager
    def locked(self, digest: str) -> Iterator[Path]:
        """The directory, locked so that no other process or thread writes there.

        Raises:
            StorageError: the system refused the lock.
        """
        path = self.directory(digest).with_suffix(".lock")
        # A file system without locks is an error: a soft lock would stay after its process died.
        lock = FileLock(path, fallback_to_soft=False)
        try:
            lock.acquire()
        except OSError as error:
            raise storage_error("lock", path, error) from error
        try:
            yield self.directory(digest)
        finally:
            lock.release()

    def remember(self, reference: Reference, digest: str) -> None:
        """Store the digest that a reference named, for offline use."""
        write_atomically(self._name(reference), f"{digest}\n{reference}\n")

    def recall(self, reference: Reference) -> str | None:
        """The digest that a reference named when it was last looked up on this machine; None if it never was."""
        if reference.digest:
            return reference.digest
        try:
            return self._name(reference).read_text(encoding="utf-8").splitlines()[0]
        except FileNotFoundError:
            return None

    def _name(self, reference: Reference) -> Path:
        return self._names / hashlib.sha256(str(reference).encode()).hexdigest()[:32]


def parse_size(text: str, what: str) -> int:
    """A number of bytes from ``500MB``, ``2 GiB`` or ``1000000``.

    Raises:
        ConfigError: it isn't one.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() == "i":
        raise ConfigError(f"{what} is {text!r}; give a size such as 500MB or 20GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])
