"""Push: copy a cache to a store. Only missing files are copied. The manifest is last, and never replaces one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from logitcache.cache.content import Content, read_content
from logitcache.cache.location import TAGS_DIR, Location, find, read_manifest, read_tag, tag_line
from logitcache.cache.opening import open_place
from logitcache.cache.signatures import push_signatures
from logitcache.errors import CacheNotFoundError, ConfigError, OutputExistsError
from logitcache.format.manifest import MANIFEST_NAME, SHARDS_DIR
from logitcache.format.table import ShardEntry
from logitcache.share.claiming import claim, finish
from logitcache.stores.store import Store, TakenError, open_writable
from logitcache.stores.url import parse_reference
from logitcache.utils.parallel import run_parallel
from logitcache.utils.progress import Report, silent

WORKERS = 8


@dataclass(frozen=True)
class Transfer:
    """The result of a push or a pull.

    Attributes:
        digest: of the cache at the target.
        target: path or URL that opens it.
        shards, bytes: number and size of all shards; equal shards are counted once.
        moved_shards, moved_bytes: the same for the shards that weren't there yet.
        dry_run: True if nothing was copied.
    """

    digest: str
    target: str
    shards: int
    bytes: int
    moved_shards: int
    moved_bytes: int
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def push(
    source: str | os.PathLike[str],
    url: str,
    *,
    collection: bool = False,
    move_tag: bool = False,
    take_over: bool = False,
    workers: int = WORKERS,
    dry_run: bool = False,
    progress: Report = silent,
) -> Transfer:
    """Copy a finished cache to a store. After an interruption, the same call copies what is missing.

    Args:
        source: a cache's directory, or its URL.
        url: ``s3://bucket/name`` stores this cache alone under that URL. ``s3://bucket/caches@TAG`` adds it to a
            collection of caches, under this tag.
        collection: add it to a collection without a tag. It can be opened by its digest.
        move_tag: the tag may name another cache now, and is moved.
        take_over: replace another cache's unfinished push to this name. Use it only if that process has ended.
        workers: transfers at the same time.
        dry_run: only say what would be copied.
        progress: called as bytes arrive.

    Raises:
        OutputExistsError: another cache has this name or is being pushed to it, or the tag names another cache.
        RemoteError: the store refused, or didn't answer in time.
        ConfigError: the URL can't be written to.
        CacheNotFoundError, CacheFormatError, CorruptCacheError, StorageError: as when opening the source.
    """
    reference = parse_reference(url)
    cache = open_place(source)
    content = read_content(cache)
    if reference.digest not in (None, content.digest):
        raise ConfigError(f"{reference} names another cache: {cache.address} is {content.digest}")
    try:
        store = open_writable(reference, create=not dry_run)
    except CacheNotFoundError:  # a directory that a real run would make
        return _transfer(content, str(reference), list(content.distinct().values()), dry_run=True)
    in_collection = collection or reference.tag is not None or reference.digest is not None
    location = Location.in_collection(store, content.digest) if in_collection else Location(store)
    if reference.tag:
        check_tag(store, reference.tag, content.digest, move_tag)
    transfer = publish(content, location, take_over=take_over, workers=workers, dry_run=dry_run, progress=progress)
    if not dry_run:
        push_signatures(cache, store)
    if reference.tag and not dry_run:
        set_tag(store, reference.tag, content.digest, move=move_tag)
    return transfer


def publish(
    content: Content,
    location: Location,
    *,
    take_over: bool = False,
    workers: int = WORKERS,
    dry_run: bool = False,
    progress: Report = silent,
) -> Transfer:
    """Write a cache to a location: claim the name, then write missing shards, the small files and the manifest.

    The claim is the file ``manifest.sha256``, written only if there is none. So if two processes push different caches
    to one name, one of them fails before it copies anything, and never replaces a small file of the other.

    Raises:
        OutputExistsError: another cache has this name or is being pushed to it.
        RemoteError: the store refused, or didn't answer in time.
    """
    taken = read_manifest(location) if location.store.size(location.path(MANIFEST_NAME)) is not None else None
    if taken is not None and taken.digest != content.digest:
        raise OutputExistsError(
            f"{location.url} already holds another cache, {taken.digest}: choose another name, or a tag in a "
            f"collection ({location.store.url}@TAG)"
        )
    if not dry_run and taken is None:
        claim(location, content, take_over)
    wanted = content.distinct()
    missing = [wanted[path] for path in wanted.keys() - _present(location.store, wanted)]
    missing.sort(key=lambda entry: entry.path)
    target = f"{location.store.url}@{content.digest}" if location.prefix else location.store.url
    transfer = _transfer(content, target, missing, dry_run=dry_run)
    if not dry_run:
        upload = _make_upload(content, location.store)
        _copy_shards(missing, upload, workers, transfer.moved_bytes, progress)
        finish(location, content, whole=taken is not None)
    return transfer


def _transfer(content: Content, target: str, missing: list[ShardEntry], *, dry_run: bool) -> Transfer:
    wanted = content.distinct().values()
    return Transfer(
        digest=content.digest,
        target=target,
        shards=len(wanted),
        bytes=sum(entry.bytes for entry in wanted),
        moved_shards=len(missing),
        moved_bytes=sum(entry.bytes for entry in missing),
        dry_run=dry_run,
    )


def check_tag(store: Store, tag: str, digest: str, move: bool) -> None:
    """Raise OutputExistsError if a tag names another cache and may not be moved."""
    found = read_tag(store, tag)
    if found not in (None, digest) and not move:
        raise OutputExistsError(
            f"the tag {tag!r} at {store.url} stands for another cache, {found}: choose another tag, or --move-tag"
        )


def set_tag(store: Store, tag: str, digest: str, *, move: bool = False) -> None:
    """Write a tag, so that it names a cache.

    Raises:
        OutputExistsError: it names another cache and may not be moved, or another process moved it at the same time.
        RemoteError: the store refused, or didn't answer in time.
    """
    path = f"{TAGS_DIR}/{tag}"
    old = read_tag(store, tag)
    check_tag(store, tag, digest, move)
    try:
        if old is None:
            store.create(path, tag_line(digest))
        elif old != digest:
            store.replace(path, tag_line(digest), tag_line(old))
    except TakenError:
        now = read_tag(store, tag)
        raise OutputExistsError(
            f"the tag {tag!r} at {store.url} was given to another cache at the same moment: it stands for {now}; this "
            f"cache is there too, as {store.url}@{digest}"
        ) from None


def _present(store: Store, wanted: dict[str, ShardEntry]) -> set[str]:
    """Paths of the wanted shards that the store has with the right size."""
    return {
        item.path
        for item in store.list(f"{SHARDS_DIR}/")
        if item.path in wanted and item.size == wanted[item.path].bytes
    }


def _make_upload(content: Content, store: Store) -> Callable[[ShardEntry], None]:
    def upload(entry: ShardEntry) -> None:
        store.put(entry.path, content.payload(entry))

    return upload


def _copy_shards(
    entries: list[ShardEntry], action: Callable[[ShardEntry], None], workers: int, total: int, progress: Report
) -> None:
    moved = 0
    progress("push", 0, total, "bytes")

    def done(entry: ShardEntry, _: None) -> None:
        nonlocal moved
        moved += entry.bytes
        progress("push", moved, total, "bytes")

    run_parallel(entries, action, workers, done)


def tag(url: str, name: str, *, move: bool = False) -> str:
    """Tag a cache of a collection; returns the cache's digest.

    Args:
        url: the cache, as ``s3://bucket/caches@sha256:…`` or with another of its tags.
        name: the tag.
        move: the tag may name another cache now, and is moved.

    Raises:
        OutputExistsError: the tag names another cache.
        CacheNotFoundError: there is no such cache.
        ConfigError: ``name`` isn't a valid tag, or the URL can't be written to.
        RemoteError: the store refused, or didn't answer in time.
    """
    reference = parse_reference(url)
    if parse_reference(f"{reference.url}@{name}").tag is None:
        raise ConfigError(f"{name!r} is not a tag: letters, digits, . _ -")
    store = open_writable(reference)
    digest = find(reference, store).digest
    set_tag(store, name, digest, move=move)
    return digest
