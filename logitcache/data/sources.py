"""Corpora on disk as a stream of rows: text, JSON lines, Parquet, Arrow, and `datasets` directories or ids.

Rows are streamed: no file but a single text document is ever whole in memory.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from logitcache.errors import DataError, MissingDependencyError

Row = dict[str, Any]

_JSONL = {".jsonl", ".ndjson"}
_PARQUET = {".parquet"}
_ARROW = {".arrow", ".ipc", ".feather"}
_COMPRESSED = {".gz", ".zst"}
_DATASET_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")
_ROWS_A_BATCH = 1024
_HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """One file of the corpus, a saved `datasets` directory, or the id of a data set on a hub.

    Attributes:
        name: as the user knows it, for messages.
        kind: how to read it.
        path: where it is; None for a hub id.
    """

    name: str
    kind: str
    path: Path | None

    def files(self) -> list[Path]:
        """The files whose content is this source, in a fixed order."""
        if self.path is None:
            return []
        if self.path.is_dir():
            return sorted(path for path in self.path.rglob("*") if path.is_file())
        return [self.path]


def find_sources(data: Sequence[str]) -> list[Source]:
    """Resolve files, globs, directories and data set ids, in the order given; a glob's matches are sorted.

    Raises:
        DataError: something named isn't there, or a directory isn't a saved data set.
    """
    sources: list[Source] = []
    for name in data:
        path = Path(name).expanduser()
        if path.is_file():
            sources.append(Source(name, _kind(path), path))
        elif path.is_dir():
            sources.append(_directory(name, path))
        elif glob.has_magic(name):
            matches = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            if not matches:
                raise DataError(f"no file matches {name}")
            sources.extend(Source(match, _kind(Path(match)), Path(match)) for match in matches)
        elif re.fullmatch(r"[\w-]+/[\w.-]+", name) and not Path(name).suffix and not path.parent.exists():
            sources.append(Source(name, "hub", None))
        else:
            raise DataError(f"data file {name} doesn't exist")
    if not sources:
        raise DataError("no data given: name at least one file with --data")
    return sources


def read_rows(source: Source, split: str = "train") -> Iterator[Row]:
    """The rows of one source as dictionaries of plain Python values; a text file is one row, ``{"text": ...}``.

    Raises:
        DataError: the file can't be read as what its name says; the message names the line where there are lines.
        MissingDependencyError: `datasets` or `zstandard` is needed.
    """
    try:
        if source.kind == "text":
            yield {"text": _read_text(source)}
        elif source.kind == "jsonl":
            yield from _read_jsonl(source)
        elif source.kind == "parquet":
            yield from _read_parquet(source)
        elif source.kind == "arrow":
            yield from _read_arrow(source)
        else:
            yield from _read_dataset(source, split)
    except OSError as error:
        raise DataError(f"can't read {source.name}: {error.strerror or error}") from error
    except (UnicodeDecodeError, EOFError, zlib.error, pa.ArrowException, *_zstd_errors()) as error:
        first_line = (str(error).splitlines() or ["damaged"])[0]
        raise DataError(f"{source.name} can't be read as {_KIND_NAMES[source.kind]}: {first_line}") from error


def _zstd_errors() -> tuple[type[Exception], ...]:
    try:
        import zstandard
    except ImportError:
        return ()
    return (zstandard.ZstdError,)


_KIND_NAMES = {
    "text": "UTF-8 text",
    "jsonl": "JSON lines",
    "parquet": "Parquet",
    "arrow": "Arrow IPC",
    "dataset": "a saved data set",
    "hub": "a data set",
}


def hash_file(path: Path) -> str:
    """Hex sha256 of a file's content, streamed."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    for kind, known in (("jsonl", _JSONL), ("parquet", _PARQUET), ("arrow", _ARROW)):
        if last in known:
            return kind
    return "text"


def _directory(name: str, path: Path) -> Source:
    if any((path / mark).exists() for mark in _DATASET_MARKS):
        return Source(name, "dataset", path)
    raise DataError(f"{name} is a directory but no saved data set; name its files, for example {name}/*.jsonl")


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise MissingDependencyError(f"reading {path} needs zstandard: pip install 'logitcache[zstd]'") from error
        return cast(IO[bytes], zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True))
    return path.open("rb")


def _file(source: Source) -> Path:
    assert source.path is not None
    return source.path


def _read_text(source: Source) -> str:
    with _open(_file(source)) as file:
        return file.read().decode("utf-8-sig")


def _read_jsonl(source: Source) -> Iterator[Row]:
    with _open(_file(source)) as file:
        for number, line in enumerate(io.BufferedReader(cast(Any, file)), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{source.name} line {number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{source.name} line {number} is {type(row).__name__}; each line must be an object")
            yield row


def _read_parquet(source: Source) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(_file(source)) as file:
        for batch in file.iter_batches(_ROWS_A_BATCH):
            yield from batch.to_pylist()


def _read_arrow(source: Source) -> Iterator[Row]:
    with pa.memory_map(str(_file(source))) as file:
        batches: Iterator[pa.RecordBatch]
        try:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_A_BATCH):
                yield from batch.slice(start, _ROWS_A_BATCH).to_pylist()


def _read_dataset(source: Source, split: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {source.name} needs datasets: pip install 'logitcache[datasets]'"
        ) from error
    try:
        if source.path is None:
            rows = datasets.load_dataset(source.name, split=split, streaming=True)
        else:
            rows = datasets.load_from_disk(str(source.path))
    except Exception as error:
        raise DataError(f"data set {source.name} can't be loaded: {(str(error).splitlines() or [''])[0]}") from error
    if isinstance(rows, dict):
        if split not in rows:
            raise DataError(f"data set {source.name} has no split {split!r}; it has {', '.join(rows)}")
        rows = rows[split]
    for row in rows:
        yield dict(row)
