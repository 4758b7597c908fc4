"""Find the sources of the corpus: files, globs, saved data sets and data sets on a hub."""

from __future__ import annotations

import glob
import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from logitcache.data.files.kinds import is_file_name, kind_of
from logitcache.errors import DataError, LogitCacheWarning

Row = dict[str, Any]

_DATASET_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")
_HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """One file of the corpus, a saved `datasets` directory, or the id of a data set on a hub.

    Attributes:
        name: the user's name for it, for messages.
        kind: how to read it: one of ``kinds.KINDS``, ``dataset`` or ``hub``.
        path: where it is; None for a hub id.
    """

    name: str
    kind: str
    path: Path | None

    def files(self) -> list[Path]:
        """The files of this source, in a fixed order."""
        if self.path is None:
            return []
        if self.path.is_dir():
            return sorted(path for path in self.path.rglob("*") if path.is_file())
        return [self.path]


class HubId(NamedTuple):
    """The parts of ``org/name[:subset][@revision]``."""

    repo: str
    subset: str | None
    revision: str | None


def parse_hub_id(name: str) -> HubId | None:
    """The parts of ``org/name[:subset][@revision]``; None if the name isn't of this form."""
    found = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)(?::([^:@]+))?(?:@([^:@]+))?", name)
    return HubId(*found.groups()) if found else None


def find_sources(data: Sequence[str], kind: str | None = None) -> list[Source]:
    """Resolve files, globs, directories and data set ids, in the given order. The matches of a glob are sorted.

    A source that is named more than once is read once, at its first place. A warning counts the repeats.

    Args:
        data: paths, globs, and ids like ``org/name``, ``org/name:subset``, ``org/name:subset@revision``.
        kind: how to read every file, instead of by its name; see ``kinds.KINDS``. Directories and ids don't change.

    Raises:
        ConfigError: there is no such kind.
        DataError: a source doesn't exist, a file's name doesn't say its kind, or a directory isn't a saved data set.
    """
    try:
        sources = [source for name in data for source in _resolve(name, kind)]
    except OSError as error:
        raise DataError(f"can't read {error.filename or data}: {error.strerror or error}") from error
    if not sources:
        raise DataError("no data given: name at least one file with --data")
    return _remove_repeats(sources)


def hash_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, which is streamed.

    Raises:
        DataError: the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _resolve(name: str, kind: str | None) -> Iterator[Source]:
    path = Path(name).expanduser()
    if path.is_file():
        yield Source(name, kind_of(path, kind), path)
    elif path.is_dir():
        yield _directory(name, path)
    elif path.exists():
        raise DataError(f"{name} is neither a file nor a directory; write its rows to a file first")
    elif glob.has_magic(name):
        yield from _match_files(name, path, kind)
    elif (hub := parse_hub_id(name)) and not is_file_name(hub.repo) and not Path(hub.repo).parent.exists():
        yield Source(name, "hub", None)
    else:
        raise DataError(f"data file {name} doesn't exist")


def _match_files(name: str, pattern: Path, kind: str | None) -> Iterator[Source]:
    matches = sorted(glob.glob(str(pattern), recursive=True))
    files = [match for match in matches if Path(match).is_file()]
    left_out = [match for match in matches if match not in files]
    if not files:
        raise DataError(f"no file matches {name}" + (f", only directories like {left_out[0]}" if left_out else ""))
    if left_out and "**" not in name:
        warnings.warn(
            f"{name} also matches directories, which aren't read: {len(left_out)}, the first is {left_out[0]}",
            LogitCacheWarning,
            stacklevel=2,
        )
    for match in files:
        yield Source(match, kind_of(Path(match), kind), Path(match))


def _directory(name: str, path: Path) -> Source:
    if any((path / mark).exists() for mark in _DATASET_MARKS):
        return Source(name, "dataset", path)
    raise DataError(f"{name} is a directory but no saved data set; name its files, for example {name}/*.jsonl")


def _remove_repeats(sources: list[Source]) -> list[Source]:
    kept: dict[str | Path, Source] = {}
    repeats: list[str] = []
    for source in sources:
        place = source.path.resolve() if source.path else source.name
        if place in kept:
            repeats.append(source.name)
        kept.setdefault(place, source)
    if repeats:
        warnings.warn(
            f"inputs named more than once are read once; {len(repeats)} left out, the first is {repeats[0]}",
            LogitCacheWarning,
            stacklevel=3,
        )
    return list(kept.values())
