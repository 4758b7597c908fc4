"""Write shards into a directory. Those already there are checked and kept; others are linked, copied or fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from logitcache.cache.content import Content
from logitcache.cache.install import claim_directory, finish, holds_shard, install_shard, refuse_other_cache
from logitcache.cache.reader import Cache
from logitcache.cache.remote import RemoteCache
from logitcache.format.table import ShardEntry
from logitcache.share.pushing import Transfer
from logitcache.utils.files import storage_error
from logitcache.utils.parallel import run_parallel
from logitcache.utils.progress import Report

WriteShard = Callable[[ShardEntry, Path], None]


def install_content(
    content: Content, root: Path, purpose: str, write_shard: WriteShard, workers: int, progress: Report
) -> Transfer:
    """Write a cache into a directory; ``write_shard`` writes one shard into a new file. Raises what ``pull`` raises."""
    refuse_other_cache(root, content.raw)
    wanted = list(content.distinct().values())
    with claim_directory(root, purpose):
        missing = missing_shards(root, wanted, workers, progress)
        fetch_shards(write_shard, root, missing, workers, progress)
        finish(root, content.raw, content.files)
    return make_transfer(content.digest, root, wanted, missing)


def missing_shards(root: Path, wanted: list[ShardEntry], workers: int, progress: Report) -> list[ShardEntry]:
    """The wanted shards that a directory doesn't have, or has damaged."""
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


def fetch_shards(
    write_shard: WriteShard, root: Path, missing: list[ShardEntry], workers: int, progress: Report
) -> None:
    """Publish shards in a directory, several at the same time."""
    total = sum(entry.bytes for entry in missing)
    moved = 0
    progress("pull", 0, total, "bytes")

    def done(entry: ShardEntry, _: None) -> None:
        nonlocal moved
        moved += entry.bytes
        progress("pull", moved, total, "bytes")

    run_parallel(missing, lambda entry: install_shard(root, entry, partial(write_shard, entry)), workers, done)


def copy_shard(cache: Cache, entry: ShardEntry, path: Path) -> None:
    """Write a shard of a cache into a new file. Raises what reading it raises."""
    if isinstance(cache, RemoteCache):
        cache.fetch_to(entry, path)
    else:
        _link_or_copy(cache, entry, path)


def write_bytes(path: Path, payload: bytes) -> None:
    """Write a new file."""
    path.write_bytes(payload)


def make_transfer(
    digest: str, root: Path, wanted: list[ShardEntry], moved: list[ShardEntry], *, dry_run: bool = False
) -> Transfer:
    """Count the wanted shards and those that moved."""
    return Transfer(
        digest=digest,
        target=str(root),
        shards=len(wanted),
        bytes=sum(entry.bytes for entry in wanted),
        moved_shards=len(moved),
        moved_bytes=sum(entry.bytes for entry in moved),
        dry_run=dry_run,
    )


def _link_or_copy(cache: Cache, entry: ShardEntry, temporary: Path) -> None:
    """Link the shard's file if the file system allows it, else copy it. A link is safe because shards never change."""
    holds = holds_shard(cache.root, entry)
    if not holds:
        cache._payload(entry)  # raises the error that names what is wrong
    with suppress(OSError):
        os.link(cache.root / entry.path, temporary)
        return
    try:
        shutil.copyfile(cache.root / entry.path, temporary)
    except OSError as error:
        raise storage_error("copy", cache.root / entry.path, error) from error
