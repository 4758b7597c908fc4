"""The whole content of a cache: its small files as bytes, and its shards on request. Push, pull and merge use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from logitcache.cache.directory import MAX_TABLE_BYTES, read_tokenizer_file
from logitcache.cache.reader import Cache
from logitcache.format.manifest import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    TABLE_NAME,
    TOKENIZER_DIR,
    digest_line,
    manifest_digest,
)
from logitcache.format.table import ShardEntry
from logitcache.utils.files import read_limited


@dataclass(frozen=True)
class Content:
    """A finished cache, in a directory or at a URL.

    Attributes:
        raw: the manifest's bytes.
        files: the other small files by relative path: the tokenizer's, and the shard table.
        entries: the shard table's rows.
        payload: gives a shard's bytes, checked.
    """

    raw: bytes
    files: dict[str, bytes]
    entries: Sequence[ShardEntry]
    payload: Callable[[ShardEntry], bytes]

    @property
    def digest(self) -> str:
        """The cache's name, ``sha256:…``."""
        return manifest_digest(self.raw)

    def small_files(self) -> dict[str, bytes]:
        """All small files except the manifest, in the order of writing. The manifest is written after them."""
        return {**self.files, MANIFEST_DIGEST_NAME: digest_line(self.raw)}

    def distinct(self) -> dict[str, ShardEntry]:
        """The shards by path. A shard that the table lists several times is here once."""
        return {entry.path: entry for entry in self.entries}


def read_content(cache: Cache) -> Content:
    """The content of an opened cache, on disk or at a URL.

    Raises:
        CorruptCacheError: a small file is missing or altered.
        StorageError: the system refused.
    """
    files = {
        f"{TOKENIZER_DIR}/{name}": read_tokenizer_file(cache.root, name, record)
        for name, record in cache.manifest.tokenizer.items()
    }
    files[TABLE_NAME] = read_limited(cache.root, TABLE_NAME, MAX_TABLE_BYTES)
    raw = read_limited(cache.root, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    return Content(raw, files, cache.shards, cache._payload)
