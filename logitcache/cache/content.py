"""All of a cache in two parts: small files as bytes, and shards to ask for. What push, pull and merge pass around."""

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
        payload: a shard's bytes, checked.
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
        """Everything but shards and manifest, in the order of writing; then the manifest makes the cache whole."""
        return {**self.files, MANIFEST_DIGEST_NAME: digest_line(self.raw)}

    def distinct(self) -> dict[str, ShardEntry]:
        """The shards by path, each once however often the table lists it."""
        return {entry.path: entry for entry in self.entries}


def content_of(cache: Cache) -> Content:
    """The content of an opened cache, on disk or at a URL. Raises as reading a cache does."""
    files = {
        f"{TOKENIZER_DIR}/{name}": read_tokenizer_file(cache.root, name, record)
        for name, record in cache.manifest.tokenizer.items()
    }
    files[TABLE_NAME] = read_limited(cache.root, TABLE_NAME, MAX_TABLE_BYTES)
    raw = read_limited(cache.root, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    return Content(raw, files, cache.shards, cache._payload)
