"""Read and check the small files of a cache's directory, before the first shard."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from logitcache.cache.listing import ExtraFile, extra_shards, missing_shard
from logitcache.errors import CacheFormatError, CacheNotFoundError, CorruptCacheError, MissingFileError
from logitcache.format.manifest import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    SHARDS_DIR,
    TABLE_NAME,
    TOKENIZER_DIR,
    FileRecord,
    Manifest,
    digest_line,
    manifest_digest,
    parse_manifest,
)
from logitcache.format.table import ShardTable
from logitcache.utils.files import (
    SCRATCH_DIR,
    check_digest,
    hash_stream,
    open_sized,
    read_checked,
    read_limited,
    storage_error,
)

#: Opening a cache of up to this many shards lists its shard directory; ``verify`` always lists it.
LISTED_SHARDS = 10_000
_MAX_TOKENIZER_BYTES = 1 << 28
#: Enough for about ten million shards.
MAX_TABLE_BYTES = 1 << 31


def read_manifest(root: Path) -> tuple[Manifest, str]:
    """The manifest and its digest. Raises what ``open_cache`` raises."""
    check_is_cache(root)
    raw = read_limited(root, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if read_limited(root, MANIFEST_DIGEST_NAME, 256) != digest_line(raw):
        raise CorruptCacheError(
            f"{root / MANIFEST_NAME} and {MANIFEST_DIGEST_NAME} don't belong together: one of them was altered"
        )
    return parse_manifest(raw, str(root / MANIFEST_NAME)), manifest_digest(raw)


def read_table(root: Path, manifest: Manifest) -> ShardTable:
    """The shard table, checked and then memory-mapped. Raises what ``open_cache`` raises."""
    path = root / TABLE_NAME
    record = manifest.shard_table
    if not 0 < record.bytes <= MAX_TABLE_BYTES:
        raise CacheFormatError(f"{path}: a table of {record.bytes:,} bytes; allowed are 1 to {MAX_TABLE_BYTES:,}")
    with open_sized(root, TABLE_NAME, record.bytes) as file:
        check_digest(path, hash_stream(file, path), record.sha256)
        try:
            mapped = mmap.mmap(file.fileno(), record.bytes, access=mmap.ACCESS_READ)
        except OSError as error:
            raise storage_error("map", path, error) from error
    return ShardTable(mapped, manifest.shard_format, str(path))


def check_totals(root: Path, manifest: Manifest, table: ShardTable) -> None:
    """Raise CorruptCacheError unless the manifest's totals are the sums of the table."""
    found = {name: table.total(name) for name in ("sequences", "tokens", "targets", "bytes")} | {"shards": len(table)}
    for name, value in found.items():
        stated = getattr(manifest.totals, name)
        if value != stated:
            raise CorruptCacheError(f"{root / TABLE_NAME} has {name} = {value:,}, {MANIFEST_NAME} says {stated:,}")


def read_tokenizer_file(root: Path, name: str, record: FileRecord) -> bytes:
    """One tokenizer file, checked. Raises what ``open_cache`` raises."""
    relative = f"{TOKENIZER_DIR}/{name}"
    if record.bytes > _MAX_TOKENIZER_BYTES:
        raise CorruptCacheError(f"{root / relative}: {record.bytes:,} bytes; at most {_MAX_TOKENIZER_BYTES:,}")
    return read_checked(root, relative, record.bytes, record.sha256)


def check_shard_files(root: Path, table: ShardTable, *, fetched_later: bool) -> None:
    """Refuse files that the table doesn't list, and missing shards unless they are fetched later.

    A directory of more than ``LISTED_SHARDS`` shards isn't listed.

    Raises:
        CorruptCacheError: a file is extra or missing; the message names it.
    """
    if len(table) > LISTED_SHARDS:
        return
    refuse_extra(extra_shards(root, table))
    if not fetched_later and (missing := missing_shard(root, table)) is not None:
        raise MissingFileError(f"{root / missing} is missing: get the cache again, or make it again")


def refuse_extra(extra: list[ExtraFile]) -> None:
    """Raise CorruptCacheError for the first file that doesn't belong to a cache, if there is one."""
    if extra:
        raise CorruptCacheError(extra[0].message)


def check_is_cache(root: Path) -> None:
    """Check that a directory holds a finished cache; the error says whether it is absent, unfinished or damaged.

    Raises:
        CacheNotFoundError: nothing is there, or something else, or an unfinished cache.
        MissingFileError: files of a cache are there, but no manifest.
        StorageError: the system refused.
    """
    try:
        names = set(os.listdir(root))
    except FileNotFoundError as error:
        raise CacheNotFoundError(f"{root} does not exist") from error
    except NotADirectoryError as error:
        raise CacheNotFoundError(f"{root} is a file; a cache is a directory with a {MANIFEST_NAME}") from error
    except OSError as error:
        raise storage_error("read", root, error) from error
    if MANIFEST_NAME in names and stat.S_ISREG(os.lstat(root / MANIFEST_NAME).st_mode):
        return
    if SCRATCH_DIR in names:
        raise CacheNotFoundError(
            f"{root} holds an unfinished cache: run the same `logitcache dump` command again to finish it "
            "(or the `pull` or `merge` that began it)"
        )
    if names & {MANIFEST_DIGEST_NAME, TABLE_NAME, SHARDS_DIR}:
        raise MissingFileError(f"{root / MANIFEST_NAME} is missing, though other files of a cache are there")
    raise CacheNotFoundError(f"{root} is not a cache: it has no {MANIFEST_NAME}")
