"""What kind of file a name stands for, and how the file is compressed."""

from __future__ import annotations

from pathlib import Path

from logitcache.errors import ConfigError, DataError

#: The names of each kind. A file with any other name is read only if its kind is given.
KINDS = {
    "text": (".txt", ".text", ".md", ".markdown", ".rst"),
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".ipc", ".feather"),
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz", ".lz4": "lz4"}

#: These kinds compress their own parts, and are read at any place; a compressed file is read from its start only.
_BY_PLACE = ("parquet", "arrow")


def kind_of(path: Path, asked: str | None = None) -> str:
    """The kind of a file: the one asked for, or the one its name says.

    Raises:
        ConfigError: there is no such kind.
        DataError: the name says nothing, or the file is compressed and its kind can't be.
    """
    choices = "|".join(KINDS)
    if asked is not None and asked not in KINDS:
        raise ConfigError(f"data_kind = {asked!r} must be one of {choices}")
    compressed = compression_of(path) is not None
    kind = asked or _by_suffix(path.with_suffix("") if compressed else path)
    if kind is None:
        raise DataError(f"the name {path} doesn't say what kind of file it is; say it with --data-kind {choices}")
    if compressed and kind in _BY_PLACE:
        raise DataError(f"{path}: a {kind} file can't be read while it is compressed as a whole; unpack it first")
    return kind


def compression_of(path: Path) -> str | None:
    """The compression that the last part of the name says; None for a plain file."""
    return COMPRESSIONS.get(path.suffix.lower())


def is_file_name(name: str) -> bool:
    """Whether the name ends like that of a file that can be read, and so is no data set's id."""
    path = Path(name)
    return compression_of(path) is not None or _by_suffix(path) is not None


def _by_suffix(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)
