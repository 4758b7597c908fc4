"""Read files of a cache without following links, and turn errors of the operating system into one-line messages."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from logitcache.errors import CorruptCacheError, MissingFileError, StorageError

#: Directory of an unfinished cache for files that are not part of it; removed when the cache is finished.
SCRATCH_DIR = ".dump"
_CHUNK = 1 << 20
_ADVICE = {
    errno.ENOSPC: "free some space, then run the same command again: finished parts are kept",
    errno.EDQUOT: "your quota is used up: free some space, then run the same command again",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENOTDIR: "there is a file where a directory is needed: choose another path",
}


def storage_error(action: str, path: Path, error: OSError) -> StorageError:
    """Make the error for a refusal of the operating system: what failed, where, why, and what to try."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return StorageError(f"can't {action} {path}: {reason}" + (f"; {advice}" if advice else ""))


def open_regular(root: Path, relative: str) -> tuple[int, int]:
    """Open a file of a cache for reading; return its descriptor and size. Links and pipes are refused.

    Raises:
        CorruptCacheError: missing, a link, or not a plain file.
        StorageError: the system refused.
    """
    path = root / relative
    try:
        if path.parent != root and stat.S_ISLNK(os.lstat(path.parent).st_mode):
            raise CorruptCacheError(f"{path.parent} is a link; a cache holds plain files and directories only")
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is missing") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise CorruptCacheError(f"{path} is not a plain file of this cache") from error
        raise storage_error("read", path, error) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise CorruptCacheError(f"{path} is not a plain file")
    return handle, status.st_size


def read_limited(root: Path, relative: str, limit: int) -> bytes:
    """Read a small file whose digest isn't known yet.

    Raises:
        CorruptCacheError: missing, not a plain file, or larger than ``limit`` bytes.
        StorageError: the system refused.
    """
    handle, size = open_regular(root, relative)
    with os.fdopen(handle, "rb") as file:
        if size > limit:
            raise CorruptCacheError(f"{root / relative} has {size:,} bytes, at most {limit:,} are allowed")
        try:
            return file.read(limit)
        except OSError as error:
            raise storage_error("read", root / relative, error) from error


def read_checked(root: Path, relative: str, size: int, sha256: str) -> bytes:
    """Read a whole file, and return it only if its size and digest are the expected ones.

    Raises:
        CorruptCacheError: missing, not a plain file, or of another size or digest.
        StorageError: the system refused.
    """
    with open_sized(root, relative, size) as file:
        try:
            payload = file.read(size)
        except OSError as error:
            raise storage_error("read", root / relative, error) from error
    check_digest(root / relative, hashlib.sha256(payload).hexdigest(), sha256)
    return payload


def hash_checked(root: Path, relative: str, size: int, sha256: str) -> None:
    """Check a file's size and digest without holding it in memory. Raises as :func:`read_checked` does."""
    with open_sized(root, relative, size) as file:
        check_digest(root / relative, hash_stream(file, root / relative), sha256)


@contextmanager
def open_sized(root: Path, relative: str, size: int) -> Iterator[BinaryIO]:
    """Open a file of a cache that must have a given size. Raises as :func:`open_regular` does."""
    handle, found = open_regular(root, relative)
    with os.fdopen(handle, "rb") as file:
        if found != size:
            raise CorruptCacheError(
                f"{root / relative} has {found:,} bytes, it should have {size:,}: it was cut off or altered"
            )
        yield file


def hash_stream(file: BinaryIO, path: Path) -> str:
    """SHA-256 of an open file from its current position on, in hex.

    Raises:
        StorageError: the system refused to read.
    """
    digest = hashlib.sha256()
    try:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    except OSError as error:
        raise storage_error("read", path, error) from error
    return digest.hexdigest()


def check_digest(path: Path, found: str, expected: str) -> None:
    """Compare two digests.

    Raises:
        CorruptCacheError: they differ.
    """
    if found != expected:
        raise CorruptCacheError(f"{path} was altered: its SHA-256 is {found[:12]}…, it should be {expected[:12]}…")
