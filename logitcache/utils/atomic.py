"""Write files so that readers see the old content or the new one, never half of it.

Content goes into a file aside, is synced, and takes the target's name in one step; then the directory is synced. After
a crash at any moment the target is as before or whole, through a power cut as well.
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

#: Ends the names of files and directories that are being written; a later run may remove them.
PART = ".part"


@contextmanager
def atomic_file(target: Path, *, aside_in: Path | None = None) -> Iterator[Path]:
    """Hand out a path to write to; when the context ends, what is there becomes ``target``.

    Args:
        target: replaced if it exists; its directory must exist.
        aside_in: the directory to write in, on the same file system; by default the target's own.

    Yields:
        A path that doesn't exist yet. The caller creates the file and closes it.

    Raises:
        StorageError: the system refused; what was written aside is removed again. Also whatever the caller raises.
    """
    aside = (aside_in or target.parent) / f".{target.name[:32]}.{uuid.uuid4().hex}{PART}"
    try:
        yield aside
        sync_file(aside)
        os.replace(aside, target)
        sync_directory(target.parent)
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        with suppress(OSError):  # the first failure is the one to report
            aside.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file whole.

    Raises:
        StorageError: no room, no permission.
    """
    with atomic_file(path) as aside:
        aside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_file(root: Path, relative: str, payload: bytes) -> None:
    """Write a file of a cache: aside in its scratch directory, through no link. Missing directories are made.

    Raises:
        StorageError: the system refused; what was written aside is removed again.
    """
    target, scratch = root / relative, root / SCRATCH_DIR
    try:
        _make_directory(root, scratch)
        _make_directory(root, target.parent)
    except OSError as error:
        raise storage_error("write", target, error) from error
    with atomic_file(target, aside_in=scratch) as aside, open(aside, "xb") as file:
        file.write(payload)


@contextmanager
def atomic_directory(target: Path, *, aside_in: Path | None = None) -> Iterator[Path]:
    """Hand out a new, empty directory to fill; when the context ends, it becomes ``target``.

    Files in it are not synced: whoever needs them to last through a power cut syncs each.

    Args:
        target: must be absent, or an empty directory.
        aside_in: the directory to write in, on the same file system; by default the target's own.

    Raises:
        OSError: the system refused, or ``target`` is taken; what was written aside is removed again. Also whatever the
            caller raises.
    """
    aside = (aside_in or target.parent) / f".{target.name[:32]}.{uuid.uuid4().hex}{PART}"
    aside.mkdir()
    try:
        yield aside
        os.rename(aside, target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Make a file's content last through a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames in a directory last through a power cut."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_directory(root: Path, path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if path != root and path.is_symlink():
        raise OSError(errno.ENOTDIR, f"{path.name} is a link to another place")
