"""Opening a cache: everything small is read and checked here, before the first shard."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from pathlib import Path

from logitcache.cache.files import (
    SCRATCH_DIR,
    check_digest,
    check_size,
    open_regular,
    read_checked,
    read_limited,
    storage_error,
)
from logitcache.cache.manifest import (
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
from logitcache.cache.reader import Cache
from logitcache.cache.table import ShardTable
from logitcache.errors import CacheNotFoundError, CorruptCacheError

#: Notes for people and for version control; no part of the cache, never read, covered by no digest.
UNCHECKED_NAMES = frozenset({"README.md", "LICENSE", ".gitattributes"})
#: Opening lists the shard directory of a cache of up to this many shards; ``verify`` lists any.
LISTED_SHARDS = 10_000
_MAX_TOKENIZER_BYTES = 1 << 28
_CHUNK = 1 << 20


def open_cache(path: str | os.PathLike[str]) -> Cache:
    """Open a finished cache.

    The manifest, the shard table and the tokenizer are checked now; each shard is when it is read.

    Args:
        path: the cache's directory.

    Raises:
        CacheNotFoundError: nothing is there, or no finished cache.
        CacheFormatError: the cache is of another version, or needs a feature this version doesn't have.
        CorruptCacheError: a file is missing, extra, cut off or altered.
        StorageError: the system refused to read.
    """
    root = Path(path)
    manifest, digest = read_manifest(root)
    for fault in stray_files(root, manifest):
        raise CorruptCacheError(fault)
    table = read_table(root, manifest)
    check_totals(root, manifest, table)
    for name, record in manifest.tokenizer.items():
        read_tokenizer_file(root, name, record)
    if len(table) <= LISTED_SHARDS:
        for fault in stray_shards(root, table):
            raise CorruptCacheError(fault)
    return Cache(root, manifest, digest, table)


def read_manifest(root: Path) -> tuple[Manifest, str]:
    """The manifest and its digest. Raises as :func:`open_cache` does."""
    _check_is_cache(root)
    raw = read_limited(root, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if read_limited(root, MANIFEST_DIGEST_NAME, 256) != digest_line(raw):
        raise CorruptCacheError(
            f"{root / MANIFEST_NAME} and {MANIFEST_DIGEST_NAME} don't belong together: one of them was altered"
        )
    return parse_manifest(raw, str(root / MANIFEST_NAME)), manifest_digest(raw)


def read_table(root: Path, manifest: Manifest) -> ShardTable:
    """The shard table, checked and then memory-mapped. Raises as :func:`open_cache` does."""
    path = root / TABLE_NAME
    handle, size = open_regular(root, TABLE_NAME)
    with os.fdopen(handle, "rb") as file:
        check_size(path, size, manifest.shard_table.bytes)
        if size == 0:
            raise CorruptCacheError(f"{path} is empty")
        digest = hashlib.sha256()
        try:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise storage_error("read", path, error) from error
    check_digest(path, digest.hexdigest(), manifest.shard_table.sha256)
    return ShardTable(mapped, manifest.shard_format, str(path))


def check_totals(root: Path, manifest: Manifest, table: ShardTable) -> None:
    """Raise CorruptCacheError unless the manifest's totals are the sums of the table."""
    found = {name: table.total(name) for name in ("sequences", "tokens", "targets", "bytes")} | {"shards": len(table)}
    for name, value in found.items():
        stated = getattr(manifest.totals, name)
        if value != stated:
            raise CorruptCacheError(f"{root / TABLE_NAME} has {name} = {value:,}, {MANIFEST_NAME} says {stated:,}")


def read_tokenizer_file(root: Path, name: str, record: FileRecord) -> bytes:
    """One tokenizer file, checked. Raises as :func:`open_cache` does."""
    relative = f"{TOKENIZER_DIR}/{name}"
    if record.bytes > _MAX_TOKENIZER_BYTES:
        raise CorruptCacheError(f"{root / relative}: {record.bytes:,} bytes; at most {_MAX_TOKENIZER_BYTES:,}")
    return read_checked(root, relative, record.bytes, record.sha256)


def stray_files(root: Path, manifest: Manifest) -> list[str]:
    """What lies at the top or under ``tokenizer/`` and is no part of the cache: one message for each."""
    expected = {MANIFEST_NAME, MANIFEST_DIGEST_NAME, TABLE_NAME, SHARDS_DIR}
    expected |= {TOKENIZER_DIR} if manifest.tokenizer else set()
    # A run that was killed after its manifest may leave the scratch directory; the cache is whole.
    strays = _unlisted(root, expected | UNCHECKED_NAMES | {SCRATCH_DIR})
    if manifest.tokenizer and (root / TOKENIZER_DIR).is_dir():
        strays += _unlisted(root / TOKENIZER_DIR, set(manifest.tokenizer))
    return strays


def stray_shards(root: Path, table: ShardTable) -> list[str]:
    """What lies under ``shards/`` and isn't in the table: one message for each."""
    directory = root / SHARDS_DIR
    if not directory.is_dir():
        return [f"{directory} is missing"] if len(table) else []
    return _unlisted(directory, {entry.path.removeprefix(f"{SHARDS_DIR}/") for entry in table})


def _unlisted(directory: Path, expected: set[str]) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise storage_error("list", directory, error) from error
    return [
        f"{directory / name} is no part of the cache: move it away, or get the cache again"
        for name in names
        if name not in expected
    ]


def _check_is_cache(root: Path) -> None:
    """Tell a place without a cache, an unfinished cache and a damaged one apart."""
    try:
        names = set(os.listdir(root))
    except FileNotFoundError as error:
        hint = ": this version opens local directories; `logitcache pull` fetches a cache" if "://" in str(root) else ""
        raise CacheNotFoundError(f"{root} does not exist{hint}") from error
    except NotADirectoryError as error:
        raise CacheNotFoundError(f"{root} is a file; a cache is a directory with a {MANIFEST_NAME}") from error
    except OSError as error:
        raise storage_error("read", root, error) from error
    if MANIFEST_NAME in names and stat.S_ISREG(os.lstat(root / MANIFEST_NAME).st_mode):
        return
    if SCRATCH_DIR in names:
        raise CacheNotFoundError(
            f"{root} holds an unfinished cache: run the same `logitcache dump` command again to finish it"
        )
    if names & {MANIFEST_DIGEST_NAME, TABLE_NAME, SHARDS_DIR}:
        raise CorruptCacheError(f"{root / MANIFEST_NAME} is missing, though other files of a cache are there")
    raise CacheNotFoundError(f"{root} is not a cache: it has no {MANIFEST_NAME}")
