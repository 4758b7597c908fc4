"""Make sure that one name in a store gets one cache, even if several processes push to it.

A push claims the name: it writes ``manifest.sha256``, but only if there is none. It owns the name when it has written
``manifest.json``, again only if there is none. If a push was interrupted, another push can take over its claim by
compare-and-swap. If the first process is still running after all, two processes write small files under one name. So
each one overwrites only files that it has read, and the one that fails restores the other's files.
"""

from __future__ import annotations

from logitcache.cache.content import Content
from logitcache.cache.directory import MAX_TABLE_BYTES
from logitcache.cache.location import Location
from logitcache.errors import OutputExistsError
from logitcache.format.manifest import MANIFEST_DIGEST_NAME, MANIFEST_NAME, digest_line
from logitcache.stores.store import NotThereError, TakenError


def claim(location: Location, content: Content, take_over: bool) -> None:
    """Claim a name for a cache. A name that is already claimed for this cache is fine.

    Raises:
        OutputExistsError: another cache has claimed it.
        RemoteError: the store refused, or didn't answer in time.
    """
    store, path, line = location.store, location.path(MANIFEST_DIGEST_NAME), digest_line(content.raw)
    try:
        store.create(path, line)
    except TakenError:
        if not take_over or store.size(location.path(MANIFEST_NAME)) is not None:
            raise OutputExistsError(
                f"another cache is being pushed to {location.url}, or its push was interrupted: choose another name, "
                "or give --take-over if no process is pushing there any more"
            ) from None
        _take_over(location, path, line)


def _take_over(location: Location, path: str, line: bytes) -> None:
    try:
        location.store.replace(path, line, location.store.get(path, 256))
    except (TakenError, NotThereError):
        raise _taken_error(location, "at the same moment") from None


def finish(location: Location, content: Content, *, whole: bool) -> None:
    """Write the small files, and the manifest last.

    Args:
        location, content: the cache, and where it goes.
        whole: the manifest is there already, so only small files that are missing are written again.

    Raises:
        OutputExistsError: another push has taken the name.
        RemoteError: the store refused, or didn't answer in time.
    """
    if not _is_claimed(location, content):
        raise _taken_error(location, "meanwhile")
    if whole:
        _restore_missing(location, content)
        return
    before: dict[str, bytes | None] = {}
    try:
        for relative, payload in content.files.items():
            path = location.path(relative)
            before[path] = _swap(location, path, payload)
        location.store.create(location.path(MANIFEST_NAME), content.raw)
    except TakenError:
        _restore_winner(location, content, before)
        raise _taken_error(location, "meanwhile") from None
    if not _is_claimed(location, content):  # taken over just before, but our manifest was first
        for relative, payload in content.small_files().items():
            location.store.put(location.path(relative), payload)


def _restore_missing(location: Location, content: Content) -> None:
    for relative, payload in content.files.items():
        if location.store.size(location.path(relative)) != len(payload):
            location.store.put(location.path(relative), payload)


def _swap(location: Location, path: str, payload: bytes) -> bytes | None:
    """Overwrite a file and return its old content; TakenError if another process writes it at the same moment."""
    store = location.store
    if store.size(path) is None:
        store.create(path, payload)
        return None
    old = store.get(path, MAX_TABLE_BYTES)
    store.replace(path, payload, old)
    return old


def _restore_winner(location: Location, content: Content, before: dict[str, bytes | None]) -> None:
    """Restore the other push's files that we overwrote. A file that it has written again since then is left alone."""
    store = location.store
    files = {location.path(relative): payload for relative, payload in content.files.items()}
    swaps = [(path, files[path], old) for path, old in before.items() if old is not None]
    try:
        winner = store.get(location.path(MANIFEST_NAME), 1 << 20)
        swaps.append((location.path(MANIFEST_DIGEST_NAME), digest_line(content.raw), digest_line(winner)))
    except NotThereError:
        pass  # it hasn't finished, so it will write its own files
    for path, ours, theirs in swaps:
        try:
            store.replace(path, theirs, ours)
        except TakenError:
            continue


def _is_claimed(location: Location, content: Content) -> bool:
    try:
        return location.store.get(location.path(MANIFEST_DIGEST_NAME), 256) == digest_line(content.raw)
    except NotThereError:
        return False


def _taken_error(location: Location, when: str) -> OutputExistsError:
    return OutputExistsError(f"another push took {location.url} over {when}: choose another name")
