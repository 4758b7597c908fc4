"""Shards on this machine's disk, for all processes of the node. At the size limit the least recently used are removed.

Locks are ``flock`` on the files themselves, so a killed process leaves no lock. A reader has a shared lock on its
shard. A downloader has an exclusive lock on ``<name>.part``, and gives that file its full size before the first byte
arrives. A process that removes shards tries exclusive locks without waiting, so it never removes a shard that is being
read or fetched. The limit is on the sum of all files' sizes.
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
_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.02

Fetch = Callable[[BinaryIO], None]


class ShardPool:
    """A directory of shards by content, under a size limit."""

    def __init__(self, root: Path, limit: int) -> None:
        """``limit``: bytes that all shards together may have, including those that are being fetched."""
        self.root = root
        self.limit = limit
        self.shards = root / "shards"
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make", self.shards, error) from error

    def read(self, relative: str, size: int, sha256: str, fetch: Fetch | None) -> bytes:
        """A shard's bytes, checked. It is fetched first if it isn't here or is damaged.

        Args:
            relative: ``shards/<name>``.
            size, sha256: the size and digest that it must have.
            fetch: writes the shard into an open file and checks it. With None, only shards that are here are read.

        Raises:
            MissingFileError: it isn't here and ``fetch`` is None.
            CorruptCacheError: it is damaged here and ``fetch`` is None.
            ConfigError: it is larger than the limit.
            StorageError: no free space, or the system refused. Also what ``fetch`` raises.
        """
        path = self.root / relative
        while True:
            with self._shared_lock(relative) as held:
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
            payload = self._fetch(relative, size, fetch)
            if payload is not None:
                return payload

    def ensure(self, relative: str, size: int, fetch: Fetch) -> None:
        """Fetch a shard unless a file with its name is here. Raises what :meth:`read` raises."""
        with self._shared_lock(relative) as held:
            if held is not None:
                return
        self._fetch(relative, size, fetch)

    def used(self) -> int:
        """Bytes of all shards here, including those that are being fetched."""
        return sum(size for _, size, _ in self._files())

    @contextmanager
    def _shared_lock(self, relative: str) -> Iterator[int | None]:
        """Lock a shard so that no process removes it; gives its file descriptor, or None if it isn't here."""
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

    def _fetch(self, relative: str, size: int, fetch: Fetch) -> bytes | None:
        """Fetch a shard and return its bytes; None if another process or thread has just fetched it."""
        if size > self.limit:
            raise ConfigError(
                f"a shard of {size:,} bytes doesn't fit into the local cache of {self.limit:,}: "
                "give it more room with LOGITCACHE_CACHE_LIMIT"
            )
        target = self.root / relative
        part = target.with_name(target.name + _PART)
        try:
            with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # waits while another process fetches it
                if not _same_file(file.fileno(), part) or target.exists():
                    self._drop_part(file, part)
                    return None
                try:
                    self._reserve(file, size)
                    fetch(file)
                    file.flush()
                    file.seek(0)
                    payload = file.read(size)
                    # Not while another process counts bytes: it could miss a file that is just being renamed.
                    with self._size_lock():
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
        """Free space for a file and allocate it, one process at a time; waits while all shards are in use."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            with self._size_lock():
                if self._evict(size):
                    _allocate(file.fileno(), size)
                    return
            if time.monotonic() > deadline:
                raise StorageError(
                    f"the local cache {self.root} of {self.limit:,} bytes is full of shards in use: "
                    "give it more room with LOGITCACHE_CACHE_LIMIT"
                )
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _size_lock(self) -> Iterator[None]:
        with open(self.root / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _evict(self, need: int) -> bool:
        """Remove the least recently used shards that aren't locked until ``need`` bytes are free; True if they are."""
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
    """True if the path is still the name of an open file. While we have its lock, no other process removes it."""
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
    """Allocate the space on the disk now, so that a full disk is noticed before the download."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(handle, size)
