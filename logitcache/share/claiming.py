"""One name, one cache: who may write the small files of a cache under a plain name, and who wins it in the end.

A push claims the name with ``manifest.sha256``, put only if there is none, and wins it with ``manifest.json``, put only
if there is none. A claim that was left behind is taken over by compare-and-swap. If its owner was alive after all, two
write small files under one name: so each overwrites only what it has read, and the loser puts back the winner's.
"""

from __future__ import annotations

from logitcache.cache.content import Content
from logitcache.cache.directory import MAX_TABLE_BYTES
from logitcache.cache.location import Location
from logitcache.errors import OutputExistsError
from logitcache.format.manifest import MANIFEST_DIGEST_NAME, MANIFEST_NAME, digest_line
from logitcache.stores.store import NotThereError, TakenError


def claim(location: Location, content: Content, take_over: bool) -> None:
    """Claim a name for a cache, or find it claimed for this one.

    Raises:
        OutputExistsError: another cache has it, or was about to.
    """
    store, path, line = location.store, location.path(MANIFEST_DIGEST_NAME), digest_line(content.raw)
    try:
        store.create(path, line)
    except TakenError:
        if not take_over or store.size(location.path(MANIFEST_NAME)) is not None:
            raise OutputExistsError(
                f"another cache is being pushed to {location.url}, or its push was broken off: choose another name, or "
                "give --take-over if nobody is pushing there any more"
            ) from None
        _take_over(location, path, line)


def _take_over(location: Location, path: str, line: bytes) -> None:
    try:
        location.store.replace(path, line, location.store.get(path, 256))
    except (TakenError, NotThereError):
        raise _lost(location, "at the same moment") from None


def finish(location: Location, content: Content, *, whole: bool) -> None:
    """Write the small files, and the manifest last.

    Args:
        whole: the manifest is there, so the small files are ours, and only those that were lost go again.

    Raises:
        OutputExistsError: the name was taken over, or another push won it.
    """
    if not _is_claimed(location, content):
        raise _lost(location, "meanwhile")
    if whole:
        _put_lost(location, content)
        return
    before: dict[str, bytes | None] = {}
    try:
        for relative, payload in content.files.items():
            path = location.path(relative)
            before[path] = _swap(location, path, payload)
        location.store.create(location.path(MANIFEST_NAME), content.raw)
    except TakenError:
        _put_back(location, content, before)
        raise _lost(location, "meanwhile") from None
    if not _is_claimed(location, content):  # taken over just before: but the manifest is ours, so it stays
        for relative, payload in content.small_files().items():
            location.store.put(location.path(relative), payload)


def _put_lost(location: Location, content: Content) -> None:
    for relative, payload in content.files.items():
        if location.store.size(location.path(relative)) != len(payload):
            location.store.put(location.path(relative), payload)


def _swap(location: Location, path: str, payload: bytes) -> bytes | None:
    """Write a file over what is there, and return that; TakenError if another writes it at the same moment."""
    store = location.store
    if store.size(path) is None:
        store.create(path, payload)
        return None
    old = store.get(path, MAX_TABLE_BYTES)
    store.replace(path, payload, old)
    return old


def _put_back(location: Location, content: Content, before: dict[str, bytes | None]) -> None:
    """What the winner wrote and we wrote over. Where it has written since, all is well."""
    store = location.store
    files = {location.path(relative): payload for relative, payload in content.files.items()}
    swaps = [(path, files[path], old) for path, old in before.items() if old is not None]
    try:
        winner = store.get(location.path(MANIFEST_NAME), 1 << 20)
        swaps.append((location.path(MANIFEST_DIGEST_NAME), digest_line(content.raw), digest_line(winner)))
    except NotThereError:
        pass  # it isn't done yet, and writes them itself
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


def _lost(location: Location, when: str) -> OutputExistsError:
    return OutputExistsError(f"another push took {location.url} over {when}: choose another name")
