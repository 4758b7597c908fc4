"""Find files in a cache's directories that aren't part of the cache, and shards that are missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from logitcache.format.manifest import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    SHARDS_DIR,
    TABLE_NAME,
    TOKENIZER_DIR,
    Manifest,
)
from logitcache.format.table import ShardTable
from logitcache.utils.files import SCRATCH_DIR, storage_error

#: Notes for people and for version control, and signatures. They aren't part of the cache, and no digest covers them.
UNCHECKED_NAMES = frozenset({"README.md", "LICENSE", ".gitattributes", "signatures"})


@dataclass(frozen=True)
class ExtraFile:
    """A file or directory that isn't part of the cache; ``path`` is relative to the cache."""

    path: str
    message: str


def extra_files(root: Path, manifest: Manifest) -> list[ExtraFile]:
    """Extra files at the top of a cache and under ``tokenizer/``.

    Raises:
        StorageError: the system refused to list a directory.
    """
    expected = {MANIFEST_NAME, MANIFEST_DIGEST_NAME, TABLE_NAME, SHARDS_DIR}
    expected |= {TOKENIZER_DIR} if manifest.tokenizer else set()
    # A run that was killed after it wrote the manifest may leave the scratch directory; the cache is complete.
    extra = _unlisted(root, "", expected | UNCHECKED_NAMES | {SCRATCH_DIR})
    if manifest.tokenizer:
        extra += _unlisted(root, TOKENIZER_DIR, set(manifest.tokenizer))
    return extra


def extra_shards(root: Path, table: ShardTable) -> list[ExtraFile]:
    """Extra files under ``shards/``.

    Raises:
        StorageError: the system refused to list the directory.
    """
    return _unlisted(root, SHARDS_DIR, {path.removeprefix(f"{SHARDS_DIR}/") for path in table.paths()})


def missing_shard(root: Path, table: ShardTable) -> str | None:
    """The first listed shard that isn't there, relative to the cache.

    Raises:
        StorageError: the system refused to list the directory.
    """
    directory = root / SHARDS_DIR
    try:
        there = {f"{SHARDS_DIR}/{name}" for name in os.listdir(directory)} if directory.is_dir() else set()
    except OSError as error:
        raise storage_error("list", directory, error) from error
    return next((path for path in table.paths() if path not in there), None)


def _unlisted(root: Path, place: str, expected: set[str]) -> list[ExtraFile]:
    directory = root / place
    prefix = f"{place}/" if place else ""
    if place and not directory.is_dir():
        return []  # other checks report each file in it as missing
    if place and directory.is_symlink():
        return [ExtraFile(place, f"{directory} is a link; a cache holds plain files and directories only")]
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise storage_error("list", directory, error) from error
    return [
        ExtraFile(prefix + name, f"{directory / name} is no part of the cache: move it away, or get the cache again")
        for name in names
        if name not in expected
    ]
