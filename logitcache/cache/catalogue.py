"""List the caches under a URL or in a directory, so that people don't make the same dump twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from logitcache.cache.directory import check_is_cache, read_manifest
from logitcache.cache.location import CACHES_DIR, TAGS_DIR, Location, read_tag
from logitcache.cache.location import read_manifest as read_remote_manifest
from logitcache.errors import CacheNotFoundError, ConfigError, LogitCacheError
from logitcache.format.manifest import MANIFEST_NAME, Manifest, parse_manifest
from logitcache.stores.store import Store
from logitcache.stores.url import as_url, parse_reference
from logitcache.utils.files import storage_error
from logitcache.utils.parallel import run_parallel

_WORKERS = 16
_RESERVED = {CACHES_DIR, TAGS_DIR, "shards", "signatures", "tokenizer"}


@dataclass(frozen=True)
class Listed:
    """One cache of a list.

    Attributes:
        address: the path or URL that opens it.
        digest: ``sha256:…``; None if the manifest can't be read.
        manifest: what it says; None if it can't be read.
        date: when the manifest was written, as the store says.
        tags: its names in the collection.
        fault: why the manifest can't be read.
    """

    address: str
    digest: str | None = None
    manifest: Manifest | None = None
    date: datetime | None = None
    tags: tuple[str, ...] = field(default=())
    fault: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain = asdict(self) | {"date": self.date.isoformat() if self.date else None, "tags": list(self.tags)}
        return plain | {"manifest": self.manifest.model_dump(mode="json", exclude_none=True) if self.manifest else None}


def catalogue(place: str | os.PathLike[str]) -> list[Listed]:
    """The caches at a place: at the place itself, in its collection, and one level below. Newest first.

    Args:
        place: a URL whose store can list (not ``http``), or a directory.

    Raises:
        CacheNotFoundError: there is no such directory.
        ConfigError: the store can't list, or the URL names a tag or a digest.
        StorageError: the system refused to list the directory.
        RemoteError: the store refused, or didn't answer in time.
    """
    url = as_url(place)
    if url is None and (Path(place) / CACHES_DIR).is_dir():  # a collection that `push` made at a file:// URL
        url = Path(place).absolute().as_uri()
    found = _local(Path(place)) if url is None else _remote(url)
    return sorted(found, key=lambda item: item.date or datetime.min.replace(tzinfo=UTC), reverse=True)


def _local(root: Path) -> list[Listed]:
    if not root.is_dir():
        raise CacheNotFoundError(f"{root} is not a directory")
    try:
        directories = [root, *sorted(item for item in root.iterdir() if item.is_dir())]
    except OSError as error:
        raise storage_error("list", root, error) from error
    found = []
    for directory in directories:
        if not os.access(directory, os.X_OK) or not (directory / MANIFEST_NAME).is_file():
            continue
        date = datetime.fromtimestamp((directory / MANIFEST_NAME).stat().st_mtime, UTC)
        try:
            check_is_cache(directory)
            manifest, digest = read_manifest(directory)
            found.append(Listed(str(directory), digest, manifest, date))
        except LogitCacheError as error:
            found.append(Listed(str(directory), date=date, fault=str(error)))
    return found


def _remote(url: str) -> list[Listed]:
    reference = parse_reference(url)
    if reference.tag or reference.digest:
        raise ConfigError(f"{reference}: list takes the collection's URL, without @{reference.tag or reference.digest}")
    store = Store(url)
    if store.scheme in ("http", "https", "hf"):
        raise ConfigError(f"{store.url}: {store.scheme}:// can't list its caches; give the name of one")
    tags = _tags(store)
    found: list[Listed] = []

    def done(location: Location, item: Listed | None) -> None:
        if item is not None:
            found.append(item)

    run_parallel(_locations(store), lambda location: _describe(location, tags), _WORKERS, done)
    return found


def _locations(store: Store) -> Iterator[Location]:
    yield Location(store)
    for name in store.folders(f"{CACHES_DIR}/"):
        yield Location(store, f"{CACHES_DIR}/{name}/")
    for name in store.folders(""):
        if name not in _RESERVED:
            yield Location(store, f"{name}/")


def _tags(store: Store) -> dict[str, tuple[str, ...]]:
    tags: dict[str, tuple[str, ...]] = {}
    for item in store.list(f"{TAGS_DIR}/"):
        name = item.path.removeprefix(f"{TAGS_DIR}/")
        digest = read_tag(store, name)
        if digest is not None:
            tags[digest] = (*tags.get(digest, ()), name)
    return tags


def _describe(location: Location, tags: dict[str, tuple[str, ...]]) -> Listed | None:
    store = location.store
    path = location.path(MANIFEST_NAME)
    date = store.modified(path)
    if date is None:
        return None
    try:
        found = read_remote_manifest(location)
        if found is None:
            return None
        manifest = parse_manifest(found.raw, store.address(path))
        if not location.prefix.startswith(f"{CACHES_DIR}/"):
            return Listed(location.url, found.digest, manifest, date)
        return Listed(f"{store.url}@{found.digest}", found.digest, manifest, date, tags.get(found.digest, ()))
    except LogitCacheError as error:
        return Listed(location.url, date=date, fault=str(error))
