"""Arrow shards: an Arrow IPC file of one record batch with one row; each array is a (nested) fixed-size list."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcache.cache.stored import StoredShard
from logitcache.errors import CorruptCacheError

ZSTD_LEVEL = 1
_TYPES = {"uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "float32": pa.float32()}
_KEY = b"logitcache"


class ArrowShards:
    """The shard format ``arrow``."""

    suffix = ".arrow"
    magic = b"ARROW1"

    def write(self, stored: StoredShard) -> bytes:
        """Return the bytes of an Arrow IPC file."""
        columns = {name: _to_column(stored.arrays[name]) for name in sorted(stored.arrays)}
        metadata = {_KEY: json.dumps(dict(stored.attributes), sort_keys=True, separators=(",", ":")).encode()}
        schema = pa.schema([pa.field(name, column.type, False) for name, column in columns.items()], metadata)
        batch = pa.record_batch(list(columns.values()), schema=schema)
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", ZSTD_LEVEL), use_threads=False)
        with pa.ipc.new_file(sink, schema, options=options) as writer:
            writer.write_batch(batch)
        return bytes(sink.getvalue())

    def read(self, payload: bytes | memoryview) -> StoredShard:
        """Return what was written, checked."""
        try:
            reader = pa.ipc.open_file(pa.BufferReader(payload), options=pa.ipc.IpcReadOptions(use_threads=False))
            if reader.num_record_batches != 1:
                raise CorruptCacheError(f"the file holds {reader.num_record_batches} record batches, not 1")
            batch = reader.get_batch(0)
            batch.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise CorruptCacheError(f"not an Arrow file that can be read: {error}") from error
        try:
            attributes = json.loads((batch.schema.metadata or {})[_KEY])
        except (ValueError, KeyError, RecursionError) as error:
            raise CorruptCacheError(f"the schema's metadata is not valid: {error}") from error
        if batch.num_rows != 1 or not isinstance(attributes, dict):
            raise CorruptCacheError(f"the record batch has {batch.num_rows} rows, not 1")
        arrays = {name: _from_column(name, batch.column(name)) for name in batch.schema.names}
        return StoredShard(arrays, attributes)

    def compressed_bytes(self, name: str, array: NDArray[Any]) -> int:
        """Bytes of an array's buffer, with the length before it."""
        return 8 + len(pa.Codec("zstd", ZSTD_LEVEL).compress(np.ascontiguousarray(array), asbytes=True))


def _to_column(array: NDArray[Any]) -> pa.Array:
    column = pa.array(np.ascontiguousarray(array).reshape(-1), _TYPES[array.dtype.name])
    kind = column.type
    for size in reversed(array.shape):
        kind = pa.list_(pa.field("item", kind, False), size)
    for size in reversed(array.shape):
        column = _wrap(column, size)
    return column


def _wrap(values: pa.Array, size: int) -> pa.Array:
    kind = pa.list_(pa.field("item", values.type, False), size)
    rows = len(values) // size if size else 1
    return pa.Array.from_buffers(kind, rows, [None], children=[values])


def _from_column(name: str, column: pa.Array) -> NDArray[Any]:
    shape = []
    while isinstance(column, pa.FixedSizeListArray):
        shape.append(column.type.list_size)
        column = column.values
    if str(column.type) not in _TYPES and column.type != pa.float32():
        raise CorruptCacheError(f"{name}: the type {column.type} is not allowed")
    if column.null_count or len(column) != int(np.prod(shape, dtype=object)):
        raise CorruptCacheError(f"{name}: {len(column)} values for the shape {shape}")
    return np.asarray(column.to_numpy(zero_copy_only=True)).reshape(shape)
