"""Write files so that a reader sees either the old content or the new content, never a part of it.

The content is written to a temporary file and synced. Then the file is renamed to the target in one step, and the
directory is synced. After a crash or a power cut at any moment, the target has its old content or all of the new one.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from logitcache.utils.files import SCRATCH_DIR, storage_error

#: Suffix of the names of files and directories that are being written; a later run may remove them.
PART = ".part"


@contextmanager
def atomic_file(target: Path, *, temporary_dir: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; when the context ends, the file at that path becomes ``target``.

    Args:
        target: replaced if it exists; its directory must exist.
        temporary_dir: where to write, on the same file system; by default the target's own directory.

    Yields:
        A path that doesn't exist yet. The caller creates the file and closes it.

    Raises:
        StorageError: the system refused to write. The temporary file is removed, also if the caller raises an error.
    """
    temporary = (temporary_dir or target.parent) / f".{target.name[:32]}.{uuid.uuid4().hex}{PART}"
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, target)
        sync_directory(target.parent)
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        with suppress(OSError):  # the first failure is the one to report
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file in one step.

    Raises:
        StorageError: the disk is full, or permission is denied.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_file(root: Path, relative: str, payload: bytes) -> None:
    """Write a file of a cache in one step, by way of its scratch directory. Missing directories are made.

    Raises:
        StorageError: the system refused to write, or a directory is a link. The temporary file is removed.
    """
    target, scratch = root / relative, root / SCRATCH_DIR
    try:
        _make_directory(root, scratch)
        _make_directory(root, target.parent)
    except OSError as error:
        raise storage_error("write", target, error) from error
    with atomic_file(target, temporary_dir=scratch) as temporary, open(temporary, "xb") as file:
        file.write(payload)


@contextmanager
def atomic_directory(target: Path, *, temporary_dir: Path | None = None) -> Iterator[Path]:
    """Yield a new, empty directory to write files in; when the context ends, it becomes ``target``.

    The files in it are not synced: a caller that needs them after a power cut must sync each of them.

    Args:
        target: must not exist, or must be an empty directory.
        temporary_dir: where to make the new directory, on the same file system; by default the target's own parent.

    Raises:
        OSError: the system refused to write, or ``target`` exists. The new directory is removed, also if the caller
            raises an error.
    """
    temporary = (temporary_dir or target.parent) / f".{target.name[:32]}.{uuid.uuid4().hex}{PART}"
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Force a file's content to the disk, so that it is there after a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Force the renames in a directory to the disk, so that they are there after a power cut."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_directory(root: Path, path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if path != root and path.is_symlink():
        raise OSError(errno.ENOTDIR, f"{path.name} is a link to another place")
