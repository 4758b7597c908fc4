"""The shard table: round trip, lookup, a million rows, and what it refuses."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.errors import CacheFormatError
from logitcache.format.arrow_guard import claimed_bytes
from logitcache.format.table import MAX_SHARD_BYTES, SCHEMA, ShardEntry, ShardTable, shard_path, write_table


def entry(number: int, sequences: int = 2) -> ShardEntry:
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    return ShardEntry(shard_path(sha256, "zarr"), sha256, 100 + number, sequences, 10 * sequences, 9 * sequences)


def to_bytes(columns: dict[str, list[Any]], schema: pa.Schema = SCHEMA, **options: Any) -> bytes:
    batch = pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def columns_of(entries: list[ShardEntry]) -> dict[str, list[Any]]:
    columns = {name: [getattr(item, name) for item in entries] for name in SCHEMA.names}
    return columns | {"sha256": [bytes.fromhex(item.sha256) for item in entries]}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_entries_are_read_as_written(count: int) -> None:
    entries = [entry(number) for number in range(count)]
    table = ShardTable(write_table(entries), "zarr", "it")
    assert list(table) == entries
    assert len(table) == count
    assert table[1:] == entries[1:]
    assert table.paths() == [item.path for item in entries]
    if count:
        assert table[-1] == entries[-1]
    with pytest.raises(IndexError):
        table[count]


def test_equal_entries_give_equal_bytes_and_may_repeat() -> None:
    entries = [entry(1), entry(1)]
    assert write_table(entries) == write_table(list(entries))
    assert list(ShardTable(write_table(entries), "zarr", "it")) == entries


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_locate_finds_the_same_as_a_loop_over_the_shards(sizes: list[int]) -> None:
    table = ShardTable(write_table([entry(number, size) for number, size in enumerate(sizes)]), "zarr", "it")
    walk = [(shard, within) for shard, size in enumerate(sizes) for within in range(size)]
    assert [table.locate(sequence) for sequence in range(sum(sizes))] == walk
    assert table.total("sequences") == sum(sizes)


def test_a_million_shards() -> None:
    count = 1_000_000
    random = np.random.default_rng(0)
    digests = random.bytes(32 * count)
    rows = [digests[32 * row : 32 * row + 32] for row in range(count)]
    sequences = random.integers(0, 100, count)
    columns = {
        "path": [f"shards/{row.hex()}.arrow" for row in rows],
        "sha256": rows,
        "bytes": np.full(count, 7_000_000),
        "sequences": sequences,
        "tokens": sequences * 1024,
        "targets": sequences * 1000,
    }
    table = ShardTable(to_bytes(columns), "arrow", "it")
    assert len(table) == count
    assert table.total("bytes") == 7_000_000 * count
    ends = np.cumsum(sequences)
    for sequence in random.integers(0, int(ends[-1]), 100):
        shard, within = table.locate(int(sequence))
        assert ends[shard] - sequences[shard] + within == sequence
        assert 0 <= within < sequences[shard]
        assert table[shard].sha256 == rows[shard].hex()


@pytest.mark.parametrize(
    "path",
    [
        "shards/../../etc/passwd",
        "/etc/passwd",
        "shards/" + "0" * 64 + ".zarr.zip",
        "shards/" + "0" * 64 + ".arrow",
        "",
        "shards/{}.zarr.zip\n",
        "shards\\{}.zarr.zip",
        "SHARDS/{}.zarr.zip",
    ],
)
@pytest.mark.parametrize("row", [0, 1])
def test_a_path_is_what_its_digest_says(path: str, row: int) -> None:
    columns = columns_of([entry(0), entry(1)])
    columns["path"][row] = path.format(columns["sha256"][row].hex())
    with pytest.raises(CacheFormatError, match="it: the path"):
        ShardTable(to_bytes(columns), "zarr", "it")


def test_upper_case_hex_is_another_path() -> None:
    columns = columns_of([entry(0)])
    columns["path"] = [f"shards/{columns['sha256'][0].hex().upper()}.zarr.zip"]
    with pytest.raises(CacheFormatError, match="it: the path"):
        ShardTable(to_bytes(columns), "zarr", "it")


@pytest.mark.parametrize(
    ("name", "value"),
    [("bytes", -1), ("bytes", MAX_SHARD_BYTES + 1), ("tokens", 2**62), ("sequences", -(2**63)), ("targets", 2**41)],
)
def test_counts_are_bounded(name: str, value: int) -> None:
    columns = columns_of([entry(0), entry(1)])
    columns[name][1] = value
    with pytest.raises(CacheFormatError, match=f"column {name} must lie within"):
        ShardTable(to_bytes(columns), "zarr", "it")


def test_sums_are_bounded() -> None:
    columns = columns_of([entry(number) for number in range(9000)])
    columns["tokens"] = [2**40] * 9000
    with pytest.raises(CacheFormatError, match=r"adds up to more than 2\^53"):
        ShardTable(to_bytes(columns), "zarr", "it")


def test_another_schema_is_refused() -> None:
    columns = columns_of([entry(0)])
    for schema in (
        pa.schema([SCHEMA.field(name) for name in reversed(SCHEMA.names)]),
        pa.schema([SCHEMA.field(name) for name in SCHEMA.names[:-1]]),
        SCHEMA.with_metadata({b"pickle": b"no"}),
        SCHEMA.set(2, pa.field("bytes", pa.int32(), nullable=False)),
        SCHEMA.set(2, pa.field("bytes", pa.int64(), nullable=True)),
    ):
        with pytest.raises(CacheFormatError, match="it is not a shard table"):
            ShardTable(to_bytes(columns, schema), "zarr", "it")


def test_a_compressed_table_is_refused_before_it_is_decompressed() -> None:
    count = 200_000
    columns = {name: np.zeros(count, np.int64) for name in SCHEMA.names} | {
        "path": [""] * count,
        "sha256": [bytes(32)] * count,
    }
    bomb = to_bytes(columns, compression="zstd")
    assert len(bomb) < 20_000
    before = pa.total_allocated_bytes()
    with pytest.raises(CacheFormatError, match="compressed, which isn't allowed"):
        ShardTable(bomb, "zarr", "it")
    assert pa.total_allocated_bytes() == before
    assert claimed_bytes(bomb, compressed=True) >= count * (32 + 4 * 8)


def test_several_batches_and_dictionaries_are_refused() -> None:
    columns = columns_of([entry(0)])
    batch = pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    with pytest.raises(CacheFormatError, match="not one record batch"):
        ShardTable(sink.getvalue().to_pybytes(), "zarr", "it")
    schema = SCHEMA.set(0, pa.field("path", pa.dictionary(pa.int32(), pa.string()), nullable=False))
    with pytest.raises(CacheFormatError, match="dictionaries"):
        ShardTable(to_bytes(columns, schema), "zarr", "it")


@pytest.mark.parametrize("junk", [b"x", b"ARROW1", b"ARROW1\0\0" + b"\xff" * 40 + b"ARROW1", bytes(5000)])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(CacheFormatError, match="it is not a shard table"):
        ShardTable(junk, "zarr", "it")
