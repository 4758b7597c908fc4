"""The shard table: one row for each shard, in an Arrow IPC file that is memory-mapped and read when needed.

Shape legend: R rows, one for each shard.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcache.errors import CacheFormatError
from logitcache.format.arrow_guard import claimed_bytes
from logitcache.format.canonical import MAX_INTEGER
from logitcache.format.formats import ShardFormatName, get_format
from logitcache.format.manifest import SHARDS_DIR
from logitcache.utils.reasons import reason

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sequences", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("targets", pa.int64(), nullable=False),
    ]
)
COUNTS = ("bytes", "sequences", "tokens", "targets")
#: A shard is read into memory as a whole; a larger one is refused before it is read.
MAX_SHARD_BYTES = 1 << 29
MAX_COUNT = 1 << 40
_ROWS_AT_ONCE = 1 << 16
#: The two hex digits of each byte value.
_HEX = np.frombuffer(bytes(range(256)).hex().encode("ascii"), np.uint8).reshape(256, 2)


@dataclass(frozen=True)
class ShardEntry:
    """One row of the shard table.

    Attributes:
        path: relative to the cache, ``shards/<sha256>.zarr.zip`` or ``.arrow``.
        sha256: digest of the file, 64 hex digits.
        bytes: the file's size.
        sequences, tokens, targets: what the shard holds.
    """

    path: str
    sha256: str
    bytes: int
    sequences: int
    tokens: int
    targets: int


def shard_path(sha256: str, shard_format: ShardFormatName) -> str:
    """The path of a shard with this digest, relative to the cache."""
    return f"{SHARDS_DIR}/{sha256}{get_format(shard_format).suffix}"


def write_table(entries: Sequence[ShardEntry]) -> bytes:
    """The table's bytes: an Arrow IPC file of one uncompressed record batch."""
    columns: dict[str, list[Any]] = {
        "path": [entry.path for entry in entries],
        "sha256": [bytes.fromhex(entry.sha256) for entry in entries],
        **{name: [getattr(entry, name) for entry in entries] for name in COUNTS},
    }
    batch = pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


class ShardTable(Sequence[ShardEntry]):
    """All shards of a cache in order; an entry is made when it is read."""

    def __init__(self, buffer: bytes | mmap.mmap, shard_format: ShardFormatName, where: str) -> None:
        """Read a table whose size and digest have been checked.

        Raises:
            CacheFormatError: not an Arrow file of this schema, or a row that isn't allowed.
        """
        self._batch = _read_batch(buffer, where)
        self._shard_format = shard_format
        counts = {name: self._batch.column(name).to_numpy(zero_copy_only=True) for name in COUNTS}
        _check_counts(counts, where)
        _check_paths(self._batch, shard_format, where)
        self.counts_R: dict[str, NDArray[np.int64]] = counts
        #: ``[R + 1]``: the first sequence of each shard, and the number of all sequences.
        self.first_sequence_R1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts["sequences"])])

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardEntry]: ...
    def __getitem__(self, index: int | slice) -> ShardEntry | list[ShardEntry]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"shard {index} of {len(self):,}")
        sha256 = self._batch.column("sha256")[row].as_py().hex()
        counts = {name: int(values_R[row]) for name, values_R in self.counts_R.items()}
        return ShardEntry(path=shard_path(sha256, self._shard_format), sha256=sha256, **counts)

    def total(self, name: str) -> int:
        """The sum of a column: ``bytes``, ``sequences``, ``tokens`` or ``targets``."""
        return int(self.counts_R[name].sum())

    def paths(self) -> list[str]:
        """Every shard's path, in order."""
        paths: list[str] = self._batch.column("path").to_pylist()
        return paths

    def locate(self, sequence: int) -> tuple[int, int]:
        """The shard that holds a sequence of the cache, and the sequence's index within it."""
        shard = int(np.searchsorted(self.first_sequence_R1, sequence, side="right")) - 1
        return shard, sequence - int(self.first_sequence_R1[shard])


def _read_batch(buffer: bytes | mmap.mmap, where: str) -> pa.RecordBatch:
    try:
        claimed_bytes(buffer, compressed=False)
        reader = pa.ipc.open_file(pa.py_buffer(buffer))
        if not reader.schema.equals(SCHEMA, check_metadata=True) or reader.num_record_batches != 1:
            raise CacheFormatError(f"{where} is not a shard table: another schema, or not one record batch")
        batch = reader.get_batch(0)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise CacheFormatError(f"{where} is not a shard table: {reason(error)}") from error
    if any(column.null_count for column in batch.columns):
        raise CacheFormatError(f"{where} has empty cells; every cell of a shard table has a value")
    return batch


def _check_counts(counts_R: dict[str, NDArray[np.int64]], where: str) -> None:
    for name, values_R in counts_R.items():
        limit = MAX_SHARD_BYTES if name == "bytes" else MAX_COUNT
        if len(values_R) and not (values_R.min() >= 0 and values_R.max() <= limit):
            raise CacheFormatError(f"{where}: column {name} must lie within 0 and {limit:,}")
        if values_R.sum(dtype=np.float64) > MAX_INTEGER:
            raise CacheFormatError(f"{where}: column {name} adds up to more than 2^53")


def _check_paths(batch: pa.RecordBatch, shard_format: ShardFormatName, where: str) -> None:
    """Check that every path is made from its digest, so that none leads out of the cache. Equal shards may repeat."""
    if not batch.num_rows:
        return
    example = np.frombuffer(shard_path("0" * 64, shard_format).encode("ascii"), np.uint8)
    length, hex_part = len(example), slice(len(SHARDS_DIR) + 1, len(SHARDS_DIR) + 65)
    _, offsets, text = batch.column("path").buffers()
    offsets_R1 = np.frombuffer(offsets, np.int32, batch.num_rows + 1)
    _, digests = batch.column("sha256").buffers()
    digests_R32 = np.frombuffer(digests, np.uint8, batch.num_rows * 32).reshape(-1, 32)
    # In slices: a table of a million rows is never copied as a whole.
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, batch.num_rows))
        expected = np.tile(example, (rows.stop - rows.start, 1))
        expected[:, hex_part] = _HEX[digests_R32[rows]].reshape(-1, 64)
        ends = offsets_R1[rows.start : rows.stop + 1]
        found = np.frombuffer(text, np.uint8)[ends[0] : ends[-1]] if text is not None else np.zeros(0, np.uint8)
        fits = (np.diff(ends) == length).all() and np.array_equal(found.reshape(-1, length), expected)
        if not fits:
            path = next(
                path
                for path, wanted in zip(batch.column("path")[rows].to_pylist(), expected, strict=True)
                if path.encode() != wanted.tobytes()
            )
            raise CacheFormatError(
                f"{where}: the path {path[:120]!r} is not {SHARDS_DIR}/<its sha256>{get_format(shard_format).suffix}"
            )
