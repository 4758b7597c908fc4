"""Read a source of the corpus, of any kind, as a stream of rows.

Rows are streamed. Only a text document, or a `.json` file that is a single object, is in memory as a whole.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from logitcache.data.files.arrow_rows import read_arrow, read_parquet
from logitcache.data.files.csv_rows import read_csv
from logitcache.data.files.dataset_rows import read_hub, read_saved
from logitcache.data.files.decompress import open_bytes
from logitcache.data.files.json_rows import read_json, read_jsonl
from logitcache.data.files.sources import Row, Source, parse_hub_id
from logitcache.data.files.utf8 import read_document
from logitcache.errors import DataError
from logitcache.utils.reasons import reason

_KIND_NAMES = {
    "text": "UTF-8 text",
    "jsonl": "JSON lines",
    "json": "JSON",
    "csv": "a table of comma-separated cells",
    "tsv": "a table of tab-separated cells",
    "parquet": "Parquet",
    "arrow": "Arrow IPC",
}


def read_rows(source: Source, split: str = "train") -> Iterator[Row]:
    """Read the rows of one source as dictionaries of plain Python values. A text file is one row, ``{"text": ...}``.

    Binary values are text if they are UTF-8, else bytes.

    Raises:
        DataError: the file is cut off, damaged or not what its name says; the message names the line, row or byte.
        MissingDependencyError: `datasets` is needed, and isn't installed.
    """
    if source.path is None:
        hub = parse_hub_id(source.name)
        assert hub is not None
        return read_hub(hub, source.name, split)
    if source.kind == "dataset":
        return read_saved(source.path, source.name, split)
    return _read_file(source.path, source.kind, source.name)


def _read_file(path: Path, kind: str, name: str) -> Iterator[Row]:
    try:
        if kind == "parquet":
            yield from read_parquet(path, name)
        elif kind == "arrow":
            yield from read_arrow(path, name)
        else:
            with open_bytes(path, name) as file:
                yield from _read_text_like(file, kind, name)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, pa.ArrowException) as error:
        # An OSError of Python has a number, and means the disk. Arrow's has none, and means the content.
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"can't read {name}: {error.strerror or error}") from error
        raise DataError(f"{name} can't be read as {_KIND_NAMES[kind]}, or is cut: {reason(error)}") from error


def _read_text_like(file: io.BufferedReader, kind: str, name: str) -> Iterator[Row]:
    if kind == "text":
        yield {"text": read_document(file, name)}
    elif kind == "jsonl":
        yield from read_jsonl(file, name)
    elif kind == "json":
        yield from read_json(file, name)
    else:
        yield from read_csv(file, name, "," if kind == "csv" else "\t")
