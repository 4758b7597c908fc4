"""Writes rows as files of every kind that `dump` reads."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

Rows = list[dict[str, Any]]


def _lz4(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    # Without a time: the bytes are part of the tests' names, which must be the same in every process.
    ".gz": partial(gzip.compress, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".lz4": _lz4,
}


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows).encode()


def json_array(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1).encode()


def cells(rows: Rows, delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=700)


def _arrow_file(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


def _arrow_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


#: Text-like kinds give bytes; the others take a table and write it themselves.
WRITERS: dict[str, Callable[..., Any]] = {
    ".jsonl": json_lines,
    ".json": json_array,
    ".csv": lambda rows: cells(rows, ","),
    ".tsv": lambda rows: cells(rows, "\t"),
    ".parquet": _parquet,
    ".arrow": _arrow_file,
    ".ipc": _arrow_stream,
}


def write(rows: Rows, path: Path, parts: int = 1) -> None:
    """Write rows in the format of the path's suffixes. Compressed content has ``parts`` members, split at any byte."""
    suffix, compressor = path.suffixes[0], COMPRESSORS.get(path.suffix)
    if suffix in (".parquet", ".arrow", ".ipc"):
        WRITERS[suffix](pa.Table.from_pylist(rows), path)
        return
    content: bytes = WRITERS[suffix](rows)
    if compressor is None:
        path.write_bytes(content)
        return
    step = len(content) // parts + 1
    path.write_bytes(b"".join(compressor(content[at : at + step]) for at in range(0, len(content), step)))
