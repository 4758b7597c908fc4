"""Where the files of a cache are under a URL.

A URL holds one cache in the layout of a directory, or a collection of many:

    shards/<sha256>.arrow           the shards, each once even if many caches list it
    manifest.json, shards.arrow …   the small files, if the URL holds one cache
    caches/<hex>/manifest.json …    the small files of each cache of a collection, by digest
    tags/<name>                     one line: the digest of the cache that the tag names
    signatures/<hex>/<key>.sig      signatures of a digest

So ``shards/`` is in the same place in both cases; only the prefix of the small files differs.
"""

from __future__ import annotations

from dataclasses import dataclass

from logitcache.errors import CacheNotFoundError, CorruptCacheError
from logitcache.format.manifest import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    SHARDS_DIR,
    digest_line,
    manifest_digest,
)
from logitcache.stores.retry import WrongAnswers, retry
from logitcache.stores.store import NotThereError, Store
from logitcache.stores.url import DIGEST, Reference

CACHES_DIR = "caches"
TAGS_DIR = "tags"
LATEST = "latest"


@dataclass(frozen=True)
class Location:
    """One cache under a store's URL.

    Attributes:
        store: the objects under the URL.
        prefix: where its small files are: empty, or ``caches/<hex>/``.
    """

    store: Store
    prefix: str = ""

    @classmethod
    def in_collection(cls, store: Store, digest: str) -> Location:
        """The location of the cache with this digest in a collection."""
        return cls(store, f"{CACHES_DIR}/{digest.removeprefix('sha256:')}/")

    def path(self, relative: str) -> str:
        """The store's path of a file that a cache calls ``relative``."""
        return relative if relative.startswith(f"{SHARDS_DIR}/") else self.prefix + relative

    @property
    def url(self) -> str:
        """The address of the cache's small files."""
        return self.store.address(self.prefix.rstrip("/"))


@dataclass(frozen=True)
class FoundCache:
    """A cache that was found, and its manifest.

    Attributes:
        location: where it is.
        raw: the manifest's bytes.
        digest: ``sha256:…``, the cache's name.
    """

    location: Location
    raw: bytes
    digest: str


def find(reference: Reference, store: Store) -> FoundCache:
    """Find the cache that a reference names, and read its manifest.

    Raises:
        CacheNotFoundError: there is no finished cache with this name.
        CorruptCacheError: the manifest and its digest don't match, or the digest isn't the one that was asked for.
        RemoteError: the store refused, or didn't answer in time.
    """
    if reference.tag:
        digest = read_tag(store, reference.tag)
        if digest is None:
            raise CacheNotFoundError(
                f"{store.url} has no tag {reference.tag!r}" + _listing(store, ": {} shows what is there")
            )
        return _pinned(store, digest)
    if reference.digest:
        return _pinned(store, reference.digest)
    found = read_manifest(Location(store))
    if found is None:
        digest = read_tag(store, LATEST)
        if digest is None:
            raise CacheNotFoundError(
                f"{store.url} is not a cache: it has no {MANIFEST_NAME}. If it is a collection of caches, name one as "
                f"{store.url}@TAG or {store.url}@sha256:…" + _listing(store, "; {} shows them")
            )
        return _pinned(store, digest)
    return found


def _listing(store: Store, advice: str) -> str:
    # A store that can't be written can't be listed either.
    return advice.format(f"`logitcache list {store.url}`") if store.writable else ""


def _pinned(store: Store, digest: str) -> FoundCache:
    found = read_manifest(Location.in_collection(store, digest))
    if found is None:
        found = read_manifest(Location(store))
        if found is None or found.digest != digest:
            other = f"; the cache there is {found.digest}" if found else ""
            raise CacheNotFoundError(f"{store.url} has no cache {digest}{other}")
    elif found.digest != digest:
        raise CorruptCacheError(f"{found.location.url}/{MANIFEST_NAME} was altered: its digest is {found.digest}")
    return found


def read_manifest(location: Location) -> FoundCache | None:
    """A location's manifest, checked against its digest file; None if there is none.

    Raises:
        CacheNotFoundError: the manifest belongs to another program.
        CorruptCacheError: the manifest and its digest don't match, or the digest is missing.
        RemoteError: the store refused, or didn't answer in time.
    """
    store = location.store

    def attempt() -> FoundCache:
        raw = store.get(location.path(MANIFEST_NAME), MAX_MANIFEST_BYTES)
        try:
            line = store.get(location.path(MANIFEST_DIGEST_NAME), 256)
        except NotThereError:
            if b'"format":"logitcache"' not in raw:
                raise CacheNotFoundError(
                    f"{location.url} is not a cache: its {MANIFEST_NAME} is something else"
                ) from None
            raise CorruptCacheError(f"{location.url}/{MANIFEST_DIGEST_NAME} is missing") from None
        if line == digest_line(raw):
            return FoundCache(location, raw, manifest_digest(raw))
        altered = f"{location.url}/{MANIFEST_NAME} and {MANIFEST_DIGEST_NAME} don't belong together: one was altered"
        raise wrong.error((raw, line), CorruptCacheError(altered))

    wrong = WrongAnswers()
    try:
        return retry(attempt, f"read {location.url}/{MANIFEST_NAME}", store.policy)
    except NotThereError:
        return None


def tag_line(digest: str) -> bytes:
    """The content of a tag."""
    return f"{digest}\n".encode("ascii")


def read_tag(store: Store, tag: str) -> str | None:
    """The digest of the cache that a tag names; None if there is no such tag.

    Raises:
        CorruptCacheError: the tag's file doesn't hold a digest.
        RemoteError: the store refused, or didn't answer in time.
    """
    address, wrong = store.address(f"{TAGS_DIR}/{tag}"), WrongAnswers()

    def attempt() -> str:
        text = store.get(f"{TAGS_DIR}/{tag}", 256).decode("ascii", "replace").strip()
        if not DIGEST.fullmatch(text):
            raise wrong.error(text, CorruptCacheError(f"{address} holds {text[:80]!r}, which is not a digest"))
        return text

    try:
        return retry(attempt, f"read {address}", store.policy)
    except NotThereError:
        return None
