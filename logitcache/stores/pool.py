"""Shards on this machine's disk, shared by all processes of the node, bounded in size, the least recently used go.

Locks are ``flock`` on the files themselves, so a killed process leaves none behind. A reader holds its shard shared,
a downloader holds ``<name>.part`` exclusively and gives it its full size before the first byte arrives, and the one
who makes room takes exclusive locks without waiting: what is in use or on its way is never removed, and the sum of
the files' sizes is what the limit speaks of.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from logitcache.errors import ConfigError, CorruptCacheError, MissingFileError, StorageError
from logitcache.utils.files import read_checked, storage_error

_PART = ".part"
_PATIENCE = 300.0
_POLL = 0.02

Fetch = Callable[[BinaryIO], None]


class ShardPool:
    """A directory of shards by content, under a size limit."""

    def __init__(self, root: Path, limit: int) -> None:
        """``limit``: bytes that all shards together may have, those on their way included."""
        self.root = root
        self.limit = limit
        self.shards = root / "shards"
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make", self.shards, error) from error

    def read(self, relative: str, size: int, sha256: str, fetch: Fetch | None) -> bytes:
        """A shard's bytes, checked; fetched first if it isn't here, or is damaged here.

        Args:
            relative: ``shards/<name>``.
            size, sha256: what it must have.
            fetch: writes the shard into an open file, checked; None reads only what is here.

        Raises:
            MissingFileError: it isn't here and ``fetch`` is None.
            CorruptCacheError: it is damaged here and ``fetch`` is None.
            ConfigError: it is larger than the limit.
            StorageError: no room on the disk, or the system refused. Also whatever ``fetch`` raises.
        """
        path = self.root / relative
        while True:
            with self._hold(relative) as held:
                if held is not None:
                    try:
                        return read_checked(self.root, relative, size, sha256)
                    except CorruptCacheError:
                        if fetch is None:
                            raise
                        if _same_file(held, path):
                            path.unlink()
            if fetch is None:
                raise MissingFileError(f"{path} is missing")
            payload = self._bring(relative, size, fetch)
            if payload is not None:
                return payload

    def ensure(self, relative: str, size: int, fetch: Fetch) -> None:
        """Fetch a shard unless a file of its name is here. Raises as :meth:`read` does."""
        with self._hold(relative) as held:
            if held is not None:
                return
        self._bring(relative, size, fetch)

    def used(self) -> int:
        """Bytes of all shards here, those on their way included."""
        return sum(size for _, size, _ in self._files())

    @contextmanager
    def _hold(self, relative: str) -> Iterator[int | None]:
        """Keep a shard from being removed while the context lasts; its descriptor, or None if it isn't here."""
        try:
            handle = os.open(self.root / relative, os.O_RDONLY)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise storage_error("read", self.root / relative, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            here = os.fstat(handle).st_nlink > 0
            if here:
                os.utime(handle)
            yield handle if here else None
        finally:
            os.close(handle)

    def _bring(self, relative: str, size: int, fetch: Fetch) -> bytes | None:
        """Fetch a shard and return it; None if another process or thread has done so meanwhile."""
        if size > self.limit:
            raise ConfigError(
                f"a shard of {size:,} bytes doesn't fit into the local cache of {self.limit:,}: "
                "give it more room with LOGITCACHE_CACHE_LIMIT"
            )
        target = self.root / relative
        part = target.with_name(target.name + _PART)
        try:
            with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # waits for whoever is fetching it
                if not _same_file(file.fileno(), part) or target.exists():
                    self._drop_part(file, part)
                    return None
                try:
                    self._reserve(file, size)
                    fetch(file)
                    file.flush()
                    file.seek(0)
                    payload = file.read(size)
                    # Not while another counts: a listing may see a file that is being renamed under neither name.
                    with self._making_room():
                        os.replace(part, target)
                except BaseException:
                    self._drop_part(file, part)
                    raise
        except OSError as error:
            raise storage_error("write", part, error) from error
        return payload

    def _drop_part(self, file: BinaryIO, part: Path) -> None:
        if _same_file(file.fileno(), part):
            part.unlink()

    def _reserve(self, file: BinaryIO, size: int) -> None:
        """Make room and take it, one process at a time; waits while everything is in use."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self._making_room():
                if self._evict(size):
                    _allocate(file.fileno(), size)
                    return
            if time.monotonic() > deadline:
                raise StorageError(
                    f"the local cache {self.root} of {self.limit:,} bytes is full of shards in use: "
                    "give it more room with LOGITCACHE_CACHE_LIMIT"
                )
            time.sleep(_POLL)

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        with open(self.root / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _evict(self, need: int) -> bool:
        """Remove the least recently used shards that nobody holds until ``need`` bytes are free."""
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used + need <= self.limit:
                break
            if _remove_unheld(path):
                used -= size
        return used + need <= self.limit

    def _files(self) -> list[tuple[int, int, Path]]:
        """(last use, size, path) of every file."""
        found = []
        for item in os.scandir(self.shards):
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, Path(item.path)))
        return found


def _same_file(handle: int, path: Path) -> bool:
    """True if the path still leads to an open file. While we hold its lock, nobody else takes it away."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_unheld(path: Path) -> bool:
    """Remove a file if no process holds a lock on it; True if it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False  # renamed from .part meanwhile: its size still counts
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _same_file(handle, path):
            return False
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _allocate(handle: int, size: int) -> None:
    """Claim the disk's room now, so that a full disk is noticed before the download."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(handle, size)
