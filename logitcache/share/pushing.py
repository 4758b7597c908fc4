"""Push: a finished cache to a store. Only what is missing moves; the manifest comes last and never replaces another."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from logitcache.cache.content import Content, content_of
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
    """What a push or a pull did, or would do.

    Attributes:
        digest: of the cache at the target.
        target: where it is now; opens it.
        shards, bytes: of the whole cache, equal shards counted once.
        moved_shards, moved_bytes: those that weren't there yet.
        dry_run: True if nothing was moved.
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
    """Copy a finished cache to a store. Run again after an interruption, it moves what is still missing.

    Args:
        source: a cache's directory, or its URL.
        url: ``s3://bucket/name`` makes this the one cache of that name. ``s3://bucket/caches@TAG`` adds it to a
            collection of caches and lets the tag stand for it.
        collection: add it to a collection without a tag; it is found by its digest.
        move_tag: the tag may stand for another cache now.
        take_over: another cache's unfinished push to this name may be replaced: the process that ran it has ended.
        workers: transfers at a time.
        dry_run: only say what would move.
        progress: called as bytes arrive.

    Raises:
        OutputExistsError: another cache has this name, is being pushed to it, or the tag stands for another.
        RemoteError: the store refused, or didn't answer in time.
        ConfigError: the URL can't be written to. Also whatever opening the source raises.
    """
    reference = parse_reference(url)
    cache = open_place(source)
    content = content_of(cache)
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
    """Put a cache at a location: claim the name, the shards that aren't there, the small files, the manifest.

    The claim is ``manifest.sha256``, put only if there is none. So of two that push different caches to one name, one
    is told before it moves anything, and no small file of one ever replaces the other's. Raises as :func:`push` does.
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
        upload = _uploader(content, location.store)
        _move(missing, upload, workers, transfer.moved_bytes, progress)
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
    """Raise OutputExistsError if a tag stands for another cache and may not move."""
    found = read_tag(store, tag)
    if found not in (None, digest) and not move:
        raise OutputExistsError(
            f"the tag {tag!r} at {store.url} stands for another cache, {found}: choose another tag, or --move-tag"
        )


def set_tag(store: Store, tag: str, digest: str, *, move: bool = False) -> None:
    """Let a tag stand for a cache.

    Raises:
        OutputExistsError: it stands for another one and may not move, or another process moved it at the same time.
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
    """Paths of wanted shards that the store has at their size."""
    return {
        item.path
        for item in store.list(f"{SHARDS_DIR}/")
        if item.path in wanted and item.size == wanted[item.path].bytes
    }


def _uploader(content: Content, store: Store) -> Callable[[ShardEntry], None]:
    def upload(entry: ShardEntry) -> None:
        store.put(entry.path, content.payload(entry))

    return upload


def _move(
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
    """Let a tag stand for a cache of a collection; returns the cache's digest.

    Args:
        url: the cache, as ``s3://bucket/caches@sha256:…`` or by another of its tags.
        name: the tag.
        move: it may stand for another cache now.

    Raises:
        OutputExistsError: it stands for another cache.
        CacheNotFoundError: there is no such cache. Also what ``push`` raises about the store.
    """
    reference = parse_reference(url)
    if parse_reference(f"{reference.url}@{name}").tag is None:
        raise ConfigError(f"{name!r} is not a tag: letters, digits, . _ -")
    store = open_writable(reference)
    digest = find(reference, store).digest
    set_tag(store, name, digest, move=move)
    return digest
