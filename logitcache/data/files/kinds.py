"""Find a file's kind and compression by its name."""

from __future__ import annotations

from pathlib import Path

from logitcache.errors import ConfigError, DataError

#: The file name endings of each kind. A file with another ending is read only if its kind is given.
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

#: These kinds need random access, and a compressed file can only be read from its start.
_RANDOM_ACCESS = ("parquet", "arrow")


def kind_of(path: Path, asked: str | None = None) -> str:
    """The kind of a file: ``asked``, or by default the kind that its name says.

    Raises:
        ConfigError: there is no such kind.
        DataError: the name doesn't say the kind, or a file of this kind can't be compressed as a whole.
    """
    choices = "|".join(KINDS)
    if asked is not None and asked not in KINDS:
        raise ConfigError(f"data_kind = {asked!r} must be one of {choices}")
    compressed = compression_of(path) is not None
    kind = asked or _by_suffix(path.with_suffix("") if compressed else path)
    if kind is None:
        raise DataError(f"the name {path} doesn't say what kind of file it is; say it with --data-kind {choices}")
    if compressed and kind in _RANDOM_ACCESS:
        raise DataError(f"{path}: a {kind} file can't be read while it is compressed as a whole; unpack it first")
    return kind


def compression_of(path: Path) -> str | None:
    """The compression by the last ending of the name; None for an uncompressed file."""
    return COMPRESSIONS.get(path.suffix.lower())


def is_file_name(name: str) -> bool:
    """True if the name has the ending of a file that can be read, so it isn't the id of a data set."""
    path = Path(name)
    return compression_of(path) is not None or _by_suffix(path) is not None


def _by_suffix(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)
