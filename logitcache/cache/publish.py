"""Write a cache: each shard when it is computed, then everything else, and the manifest last."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from logitcache.cache.listing import ExtraFile, extra_files
from logitcache.errors import ConfigError, CorruptCacheError, OutputExistsError
from logitcache.format.arrays import ShardArrays
from logitcache.format.calibrate import Calibration
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName
from logitcache.format.manifest import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    SHARDS_DIR,
    TABLE_NAME,
    TOKENIZER_DIR,
    Card,
    Manifest,
    Provenance,
    Totals,
    digest_line,
    file_record,
    manifest_digest,
)
from logitcache.format.table import MAX_SHARD_BYTES, ShardEntry, shard_path, write_table
from logitcache.utils.atomic import sync_directory, write_file
from logitcache.utils.files import SCRATCH_DIR, storage_error
from logitcache.utils.validation import first_fault

_SHARD_NAME = re.compile(r"[0-9a-f]{64}\.(zarr\.zip|arrow)")


def publish_shard(root: Path, payload: bytes, arrays: ShardArrays, shard_format: ShardFormatName) -> ShardEntry:
    """Write one encoded shard under its digest. Readers see the complete file or no file.

    An existing shard with the same content is kept; a damaged one is replaced.

    Args:
        root: directory of the new cache; made if missing.
        payload: what ``encode_shard`` returned.
        arrays: what was encoded, for the counts.
        shard_format: ``zarr`` or ``arrow``.

    Raises:
        ConfigError: the payload is larger than a reader accepts.
        StorageError: no free space, no permission, or a read-only file system.
    """
    if len(payload) > MAX_SHARD_BYTES:
        raise ConfigError(f"a shard of {len(payload):,} bytes; at most {MAX_SHARD_BYTES:,}: put less into one shard")
    sha256 = hashlib.sha256(payload).hexdigest()
    entry = ShardEntry(
        path=shard_path(sha256, shard_format),
        sha256=sha256,
        bytes=len(payload),
        sequences=arrays.sequences,
        tokens=arrays.tokens,
        targets=arrays.targets,
    )
    if not _holds(root / entry.path, payload):
        write_file(root, entry.path, payload)
    return entry


def finalize_cache(
    root: Path,
    entries: Sequence[ShardEntry],
    provenance: Provenance,
    encoding: Encoding,
    shard_format: ShardFormatName,
    tokenizer_files: Mapping[str, bytes],
    calibration: Calibration | None = None,
    card: Card | None = None,
) -> str:
    """Turn published shards into a finished cache: tokenizer, shard table, and the manifest last.

    Until the manifest is there, no reader takes the directory for a cache. After a crash at any point, running this
    again gives the same bytes. At the end the scratch directory ``.dump`` is removed.

    Args:
        root: where the shards were published.
        entries: rows of the shard table, in the order of the sequences.
        provenance, encoding, shard_format: for the manifest.
        tokenizer_files: content of each file, by file name without a directory.
        calibration: what ``calibrate`` measured on the first shard.
        card: what a person should know before using the cache.

    Returns:
        The cache's digest, ``sha256:…`` over its manifest.

    Raises:
        CorruptCacheError: a listed shard is missing or of another size.
        OutputExistsError: another finished cache is there, or a file that isn't part of the cache.
        ConfigError: a value can't be written into a manifest.
        StorageError: the system refused.
    """
    table = write_table(entries)
    try:
        manifest = Manifest(
            provenance=provenance,
            encoding=encoding,
            shard_format=shard_format,
            totals=Totals(shards=len(entries), **_sums(entries)),
            shard_table=file_record(table),
            tokenizer={name: file_record(content) for name, content in tokenizer_files.items()},
            calibration=calibration,
            card=card or Card(),
        )
    except ValidationError as error:
        raise ConfigError(f"the manifest can't be written: {first_fault(error)}") from error
    raw = manifest.to_bytes()
    _refuse_other_cache(root, raw)
    _check_shards(root, entries)
    for name, content in sorted(tokenizer_files.items()):
        write_file(root, f"{TOKENIZER_DIR}/{name}", content)
    _refuse_extra(root, extra_files(root, manifest) + _extra_shards(root, entries))
    write_file(root, TABLE_NAME, table)
    write_file(root, MANIFEST_DIGEST_NAME, digest_line(raw))
    write_file(root, MANIFEST_NAME, raw)
    remove_scratch(root)
    return manifest_digest(raw)


def remove_scratch(root: Path) -> None:
    """Remove the scratch directory of an unfinished cache.

    Raises:
        StorageError: the system refused.
    """
    scratch = root / SCRATCH_DIR
    try:
        if scratch.is_symlink():
            scratch.unlink()
        elif scratch.exists():
            shutil.rmtree(scratch)
            sync_directory(root)
    except OSError as error:
        raise storage_error("remove", scratch, error) from error


def _sums(entries: Sequence[ShardEntry]) -> dict[str, int]:
    return {
        name: sum(getattr(entry, name) for entry in entries) for name in ("sequences", "tokens", "targets", "bytes")
    }


def _holds(path: Path, payload: bytes) -> bool:
    """True if the path is a regular file with exactly this content."""
    try:
        return not path.is_symlink() and path.stat().st_size == len(payload) and path.read_bytes() == payload
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error("read", path, error) from error


def _refuse_other_cache(root: Path, raw: bytes) -> None:
    path = root / MANIFEST_NAME
    if (path.exists() or path.is_symlink()) and not _holds(path, raw):
        raise OutputExistsError(f"{root} already holds another cache: choose another place, or delete it first")


def _check_shards(root: Path, entries: Sequence[ShardEntry]) -> None:
    """Check that every listed shard is there with its size. Its content was checked when it was published."""
    try:
        (root / SHARDS_DIR).mkdir(parents=True, exist_ok=True)
        sizes = {item.name: item.stat(follow_symlinks=False).st_size for item in os.scandir(root / SHARDS_DIR)}
    except OSError as error:
        raise storage_error("list", root / SHARDS_DIR, error) from error
    for entry in entries:
        found = sizes.get(_name(entry))
        if found != entry.bytes:
            state = "is missing" if found is None else f"has {found:,} bytes, it should have {entry.bytes:,}"
            raise CorruptCacheError(f"{root / entry.path} {state}: run the same command again to write it again")


def _extra_shards(root: Path, entries: Sequence[ShardEntry]) -> list[ExtraFile]:
    """Files that the table doesn't list. A shard left by an earlier, unfinished run is removed; other files stay."""
    extra = []
    for name in sorted(set(os.listdir(root / SHARDS_DIR)) - {_name(entry) for entry in entries}):
        path = root / SHARDS_DIR / name
        if not _SHARD_NAME.fullmatch(name):
            extra.append(ExtraFile(f"{SHARDS_DIR}/{name}", ""))
            continue
        try:
            path.unlink()
        except OSError as error:
            raise storage_error("remove", path, error) from error
    return extra


def _refuse_extra(root: Path, extra: Sequence[ExtraFile]) -> None:
    if extra:
        path = root / extra[0].path
        raise OutputExistsError(f"{path} is no part of the cache: move it away, then run the same command again")


def _name(entry: ShardEntry) -> str:
    return entry.path.removeprefix(f"{SHARDS_DIR}/")
