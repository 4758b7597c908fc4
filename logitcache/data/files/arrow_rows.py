"""Rows of Parquet and Arrow files as plain Python values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from logitcache.data.files.sources import Row
from logitcache.errors import DataError
from logitcache.utils.reasons import reason

_ROWS_A_BATCH = 1024
_FILE_MAGIC = b"ARROW1"
# Before Arrow 0.15 there was no mark before a message, and the end mark was four zeros.
_CONTINUATION, _OLD_END = b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"

Conversion = Callable[[Any], Any]


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    """Read the rows of a Parquet file, batch by batch.

    Raises:
        DataError: two columns have one name, or a value can't be converted; the message names the row.
        OSError, UnicodeDecodeError, pyarrow.ArrowException: the file is cut or damaged.
    """
    with pq.ParquetFile(path) as file:
        yield from _rows(file.iter_batches(_ROWS_A_BATCH), name)


def read_arrow(path: Path, name: str) -> Iterator[Row]:
    """Read the rows of an Arrow file or stream, batch by batch.

    Raises:
        DataError: a stream has no end mark, two columns have one name, or a value can't be converted.
        OSError, UnicodeDecodeError, pyarrow.ArrowException: the file is cut or damaged.
    """
    with path.open("rb") as start:
        is_file = start.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    if not is_file:
        check_stream_end(path, name)
    with pa.memory_map(str(path)) as file:
        if is_file:
            reader = pa.ipc.open_file(file)
            yield from _rows((reader.get_batch(i) for i in range(reader.num_record_batches)), name)
        else:
            yield from _rows(iter(pa.ipc.open_stream(file)), name)


def check_stream_end(path: Path, name: str) -> None:
    """Check that an Arrow stream ends with its end mark. Without it, rows may be missing.

    Raises:
        DataError: there is no mark.
    """
    with path.open("rb") as file:
        begin = file.read(len(_CONTINUATION))
        end = _CONTINUATION + _OLD_END if begin == _CONTINUATION else _OLD_END
        file.seek(max(path.stat().st_size - len(end), 0))
        if file.read() == end:
            return
    raise DataError(f"{name} has no Arrow end mark: it is cut, its writer was never closed, or it is no Arrow file")


def _rows(batches: Iterator[Any], name: str) -> Iterator[Row]:
    first = 1
    for whole in batches:
        names = _names(whole, name)
        for start in range(0, whole.num_rows, _ROWS_A_BATCH):
            batch = whole.slice(start, _ROWS_A_BATCH)
            columns = [
                _values(column, f"{name}: column {label!r}", first)
                for label, column in zip(names, batch.columns, strict=True)
            ]
            for values in zip(*columns, strict=True):
                yield dict(zip(names, values, strict=True))
            first += batch.num_rows


def _names(batch: Any, name: str) -> list[str]:
    names: list[str] = batch.schema.names
    if len(set(names)) < len(names):
        raise DataError(
            f"{name}: two columns are named {next(column for column in names if names.count(column) > 1)!r}"
        )
    return names


def _values(column: Any, where: str, first_row: int) -> list[Any]:
    """The plain values of one column of a batch; ``first_row`` is the number of its first row."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    try:
        # Without this, wrong offsets would read memory outside the column, and an error about UTF-8 would have no row.
        column.validate(full=True)
        values = column.to_pylist()
        convert = _find_conversion(column.type)
        return values if convert is None else [convert(value) for value in values]
    except (pa.ArrowException, ValueError, OverflowError) as error:
        # Arrow crashes the process when it slices an invalid map.
        if len(column) <= 1 or "map<" in str(column.type):
            last_row = first_row + len(column) - 1
            rows = f"row {first_row}" if last_row == first_row else f"one of the rows {first_row} to {last_row}"
            raise DataError(f"{where} in {rows} can't be taken: {reason(error)}") from error
        half = len(column) // 2
        return [
            *_values(column.slice(0, half), where, first_row),
            *_values(column.slice(half), where, first_row + half),
        ]


def _find_conversion(kind: Any) -> Conversion | None:
    """The conversion that values of a type need: bytes to text if they are UTF-8, maps to dictionaries, or None."""
    types = pa.types
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or kind == pa.binary_view()
    ):
        return as_text
    if types.is_dictionary(kind):
        return _find_conversion(kind.value_type)
    if types.is_map(kind):
        convert_key, convert_item = _find_conversion(kind.key_type), _find_conversion(kind.item_type)
        return lambda pairs: _convert_map(pairs, convert_key, convert_item)
    if types.is_struct(kind):
        conversions = {field.name: convert for field in kind if (convert := _find_conversion(field.type)) is not None}
        return (lambda value: _convert_struct(value, conversions)) if conversions else None
    if types.is_nested(kind) and hasattr(kind, "value_type"):
        convert = _find_conversion(kind.value_type)
        return (lambda items: None if items is None else [convert(item) for item in items]) if convert else None
    return None


def as_text(value: Any) -> Any:
    """Bytes as text if they are UTF-8; other values as they are, such as an image in a column that isn't used."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _convert_map(
    pairs: list[tuple[Any, Any]] | None, key: Conversion | None, item: Conversion | None
) -> dict[Any, Any] | None:
    if pairs is None:
        return None
    converted = {key(k) if key else k: item(v) if item else v for k, v in pairs}
    if len(converted) < len(pairs):
        raise ValueError("a map has one key twice")
    return converted


def _convert_struct(value: dict[str, Any] | None, conversions: dict[str, Conversion]) -> dict[str, Any] | None:
    if value is None:
        return None
    return {name: conversions[name](v) if name in conversions else v for name, v in value.items()}
