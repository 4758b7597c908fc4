"""Arrow shards: an Arrow IPC file of one record batch with one row; an array is a column of (nested) fixed-size lists.

Fixed-size lists have no offsets, which could be wrong: the schema alone gives the size of every array.
"""

from __future__ import annotations

import json
import math
import mmap
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError
from logitcache.format.arrow_guard import claimed_bytes
from logitcache.format.stored import StoredShard, size_limit
from logitcache.utils.reasons import reason

# Arrow has one level for a whole file; see ``stored.zstd_level``.
ZSTD_LEVEL = 1
_TYPES = {"uint8": pa.uint8(), "uint32": pa.uint32(), "float32": pa.float32()}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_HEADER = b"logitcache"
_MAX_DIMENSIONS = 4


class ArrowShards:
    """The shard format ``arrow``."""

    suffix = ".arrow"
    magic = b"ARROW1"

    def write(self, stored: StoredShard) -> bytes:
        """Return the bytes of an Arrow IPC file."""
        columns = {name: _to_column(stored.arrays[name]) for name in sorted(stored.arrays)}
        header = json.dumps(dict(stored.attributes), sort_keys=True, separators=(",", ":")).encode()
        schema = pa.schema([pa.field(name, column.type, False) for name, column in columns.items()], {_HEADER: header})
        batch = pa.record_batch(list(columns.values()), schema=schema)
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", ZSTD_LEVEL), use_threads=False)
        with pa.ipc.new_file(sink, schema, options=options) as writer:
            writer.write_batch(batch)
        return bytes(sink.getvalue())

    def read(self, payload: bytes | memoryview) -> StoredShard:
        """Return what was written.

        Raises:
            CorruptCacheError: the payload isn't a shard in this format.
        """
        try:
            batch = _read_batch(payload)
            attributes = json.loads((batch.schema.metadata or {})[_HEADER])
        except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError, MemoryError) as error:
            raise CorruptCacheError(f"not an Arrow shard: {reason(error)}") from error
        if not isinstance(attributes, dict):
            raise CorruptCacheError("the header in the schema's metadata is not a JSON object")
        names = batch.schema.names
        if len(set(names)) < len(names):
            raise CorruptCacheError("two columns have the same name")
        return StoredShard({name: _from_column(name, batch.column(i)) for i, name in enumerate(names)}, attributes)

    def read_one(self, file: BinaryIO, name: str) -> NDArray[Any]:
        """Return one array of a shard's file; of the rest, only the schema and the sizes are read.

        Raises:
            CorruptCacheError: the file isn't a shard in this format, or has no such array.
        """
        try:
            # Memory-mapped, so that only the needed pages are read.
            batch = _read_batch(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), name)
            return _from_column(name, batch.column(0))
        except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError, MemoryError) as error:
            raise CorruptCacheError(f"not an Arrow shard: {reason(error)}") from error

    def compressed_bytes(self, name: str, array: NDArray[Any]) -> int:
        """Bytes of an array's buffer, with the length before it."""
        return 8 + len(pa.Codec("zstd", ZSTD_LEVEL).compress(np.ascontiguousarray(array), asbytes=True))


def _read_batch(payload: bytes | memoryview, only: str | None = None) -> pa.RecordBatch:
    claimed = claimed_bytes(payload, compressed=True)
    if claimed > size_limit(len(payload)):
        raise ValueError(f"its arrays claim {claimed:,} bytes, too many for a file of {len(payload):,}")
    reader = pa.ipc.open_file(pa.BufferReader(payload), options=pa.ipc.IpcReadOptions(use_threads=False))
    for field in reader.schema:
        _shape(field.name, field.type)
    if only is not None:
        place = reader.schema.names.index(only)
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=[place])
        reader = pa.ipc.open_file(pa.BufferReader(payload), options=options)
    if reader.num_record_batches != 1:
        raise ValueError(f"it holds {reader.num_record_batches} record batches, not 1")
    batch = reader.get_batch(0)
    batch.validate(full=True)
    if batch.num_rows != 1:
        raise ValueError(f"it has {batch.num_rows} rows, not 1")
    return batch


def _to_column(array: NDArray[Any]) -> pa.Array:
    values = np.ascontiguousarray(array)
    column = pa.array(values.reshape(-1), _TYPES[values.dtype.name])
    for axis in range(values.ndim - 1, -1, -1):
        kind = pa.list_(pa.field("item", column.type, False), values.shape[axis])
        column = pa.Array.from_buffers(kind, math.prod(values.shape[:axis]), [None], children=[column])
    return column


def _shape(name: str, kind: pa.DataType) -> tuple[int, ...]:
    shape: list[int] = []
    while pa.types.is_fixed_size_list(kind) and len(shape) < _MAX_DIMENSIONS:
        shape.append(kind.list_size)
        kind = kind.value_type
    if kind not in _NAMES or not shape:
        raise ValueError(f"the column {name[:80]!r} has the type {str(kind)[:80]}, which is not allowed")
    return tuple(shape)


def _from_column(name: str, column: pa.Array) -> NDArray[Any]:
    shape = _shape(name, column.type)
    for _ in shape:
        if column.null_count:
            raise CorruptCacheError(f"the column {name} has nulls")
        column = column.values
    if column.null_count or len(column) != math.prod(shape):
        raise CorruptCacheError(f"the column {name} has nulls, or {len(column)} values for the shape {shape}")
    return np.asarray(column.to_numpy(zero_copy_only=True)).reshape(shape)
