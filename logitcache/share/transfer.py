"""Shards into a directory: what is there already is checked and kept, the rest is linked, copied or fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from logitcache.cache.content import Content
from logitcache.cache.install import claimed, finish, holds_shard, install_shard, refuse_other_cache
from logitcache.cache.reader import Cache
from logitcache.cache.remote import RemoteCache
from logitcache.format.table import ShardEntry
from logitcache.share.pushing import Transfer
from logitcache.utils.files import storage_error
from logitcache.utils.parallel import run_parallel
from logitcache.utils.progress import Report

Fill = Callable[[ShardEntry, Path], None]


def install_content(content: Content, root: Path, purpose: str, fill: Fill, workers: int, progress: Report) -> Transfer:
    """Write a whole cache into a directory; ``fill`` writes one shard into a new file. Raises as ``pull`` does."""
    refuse_other_cache(root, content.raw)
    wanted = list(content.distinct().values())
    with claimed(root, purpose):
        missing = missing_shards(root, wanted, workers, progress)
        fetch_shards(fill, root, missing, workers, progress)
        finish(root, content.raw, content.files)
    return transfer_of(content.digest, root, wanted, missing)


def missing_shards(root: Path, wanted: list[ShardEntry], workers: int, progress: Report) -> list[ShardEntry]:
    """Shards that a directory doesn't have, whole and unaltered."""
    if not (root / "shards").is_dir():
        return wanted
    missing: list[ShardEntry] = []
    checked = 0
    total = sum(entry.bytes for entry in wanted)

    def done(entry: ShardEntry, holds: bool) -> None:
        nonlocal checked
        checked += entry.bytes
        progress("check what is here", checked, total, "bytes")
        if not holds:
            missing.append(entry)

    run_parallel(wanted, partial(holds_shard, root), workers, done)
    return sorted(missing, key=lambda entry: entry.path)


def fetch_shards(fill: Fill, root: Path, missing: list[ShardEntry], workers: int, progress: Report) -> None:
    """Publish shards in a directory, several at a time."""
    total = sum(entry.bytes for entry in missing)
    moved = 0
    progress("pull", 0, total, "bytes")

    def done(entry: ShardEntry, _: None) -> None:
        nonlocal moved
        moved += entry.bytes
        progress("pull", moved, total, "bytes")

    run_parallel(missing, lambda entry: install_shard(root, entry, partial(fill, entry)), workers, done)


def copy_shard(cache: Cache, entry: ShardEntry, path: Path) -> None:
    """Write a shard of a cache into a new file. Raises as reading it does."""
    if isinstance(cache, RemoteCache):
        cache.fetch_to(entry, path)
    else:
        _link_or_copy(cache, entry, path)


def write_bytes(path: Path, payload: bytes) -> None:
    """Write a new file."""
    path.write_bytes(payload)


def transfer_of(
    digest: str, root: Path, wanted: list[ShardEntry], moved: list[ShardEntry], *, dry_run: bool = False
) -> Transfer:
    """Add up what was wanted and what moved."""
    return Transfer(
        digest=digest,
        target=str(root),
        shards=len(wanted),
        bytes=sum(entry.bytes for entry in wanted),
        moved_shards=len(moved),
        moved_bytes=sum(entry.bytes for entry in moved),
        dry_run=dry_run,
    )


def _link_or_copy(cache: Cache, entry: ShardEntry, aside: Path) -> None:
    """Shards never change in place, so a second name for the same file will do where the file system allows it."""
    holds = holds_shard(cache.root, entry)
    if not holds:
        cache._payload(entry)  # raises the error that names what is wrong
    with suppress(OSError):
        os.link(cache.root / entry.path, aside)
        return
    try:
        shutil.copyfile(cache.root / entry.path, aside)
    except OSError as error:
        raise storage_error("copy", cache.root / entry.path, error) from error
