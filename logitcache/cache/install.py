"""Write a cache into a directory: first the shards, then the small files, and the manifest last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from logitcache.cache.listing import UNCHECKED_NAMES
from logitcache.cache.publish import remove_scratch
from logitcache.cache.reader import open_cache
from logitcache.errors import CorruptCacheError, LogitCacheError, OutputExistsError
from logitcache.format.manifest import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    SHARDS_DIR,
    TOKENIZER_DIR,
    digest_line,
    manifest_digest,
)
from logitcache.format.table import ShardEntry
from logitcache.utils.atomic import PART, atomic_file, write_file
from logitcache.utils.files import SCRATCH_DIR, hash_checked, storage_error

_MARK = "target"


@contextmanager
def claim_directory(root: Path, purpose: str, *, keep_shards: bool = True) -> Iterator[None]:
    """Lock a directory for one process while it writes a cache there.

    Args:
        root: absent, empty, left by an interrupted run of the same purpose, or with a finished cache.
        purpose: one line that names what will be written, such as a digest. It is equal when a run is continued.
        keep_shards: if the run fails, keep its shards, so that a later run can continue. If False, a failure or Ctrl-C
            removes everything.

    Raises:
        OutputExistsError: something else is there, or another process is writing there.
        StorageError: the system refused.
    """
    mark = root / SCRATCH_DIR / _MARK
    if not (root / MANIFEST_NAME).exists():
        _refuse_others(root, mark, purpose)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        lock = mark.open("a+", encoding="utf-8")
    except OSError as error:
        raise storage_error("write", root, error) from error
    with lock:
        try:
            if not lock_descriptor(lock.fileno(), blocking=False):
                raise OutputExistsError(f"another process is writing a cache into {root}: wait for it")
            lock.truncate(0)
            lock.write(purpose)
            lock.flush()
            for left in mark.parent.glob(f"*{PART}"):
                left.unlink()
        except OSError as error:
            raise storage_error("write", root, error) from error
        try:
            yield
        except BaseException as error:
            if not keep_shards and not (root / MANIFEST_NAME).exists():
                shutil.rmtree(root / SHARDS_DIR, ignore_errors=True)
                shutil.rmtree(root / TOKENIZER_DIR, ignore_errors=True)
            if isinstance(error, LogitCacheError) or not keep_shards:
                _remove_if_empty(root)
            raise


def _refuse_others(root: Path, mark: Path, purpose: str) -> None:
    if not root.exists():
        return
    try:
        names = set(os.listdir(root)) - UNCHECKED_NAMES
    except OSError as error:
        raise storage_error("write", root, error) from error
    if not names:
        return
    if not mark.exists():
        raise OutputExistsError(f"{root} is not empty and holds no cache: choose another place, or empty it first")
    # A run that was killed after it opened the mark and before it wrote it leaves an empty mark and nothing else.
    found = mark.read_text(encoding="utf-8")
    if found not in ("", purpose):
        raise OutputExistsError(
            f"{root} holds the beginning of something else ({found}): finish that, or delete the directory"
        )


def _remove_if_empty(root: Path) -> None:
    """Remove the new directories if the run failed before its first shard."""
    shards = root / SHARDS_DIR
    if (root / MANIFEST_NAME).exists() or (shards.is_dir() and any(shards.iterdir())):
        return
    remove_scratch(root)
    for directory in (shards, root):
        with suppress(OSError):  # not empty, or not there
            directory.rmdir()


def holds_shard(root: Path, entry: ShardEntry) -> bool:
    """True if the directory has this shard, complete and unaltered."""
    try:
        hash_checked(root, entry.path, entry.bytes, entry.sha256)
    except CorruptCacheError:
        return False
    return True


def install_shard(root: Path, entry: ShardEntry, write: Callable[[Path], None]) -> None:
    """Publish one shard: ``write`` writes a temporary file, which is synced and then renamed.

    Raises:
        StorageError: the system refused. Also what ``write`` raises.
    """
    target = root / entry.path
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error("write", target, error) from error
    with atomic_file(target, temporary_dir=root / SCRATCH_DIR) as temporary:
        write(temporary)


def finish(root: Path, raw: bytes, files: dict[str, bytes]) -> None:
    """Write the small files and the manifest, and check the cache by opening it.

    Raises:
        OutputExistsError: another finished cache is there.
        CorruptCacheError: a file is there that isn't part of the cache.
        StorageError: the system refused.
    """
    refuse_other_cache(root, raw)
    for relative, payload in files.items():
        write_file(root, relative, payload)
    write_file(root, MANIFEST_DIGEST_NAME, digest_line(raw))
    write_file(root, MANIFEST_NAME, raw)
    remove_scratch(root)
    open_cache(root)


def refuse_other_cache(root: Path, raw: bytes) -> None:
    """Raise OutputExistsError if the directory holds a finished cache with another manifest."""
    path = root / MANIFEST_NAME
    try:
        with open(path, "rb") as file:
            found = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error("read", path, error) from error
    if found != raw:
        raise OutputExistsError(f"{root} already holds another cache, {manifest_digest(found)}: choose another place")
