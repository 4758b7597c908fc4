"""Mutants of one file: bytes, JSON, and the containers that shards lie in."""

from __future__ import annotations

import io
import json
import random
import zipfile
from typing import Any

import numpy as np
import pyarrow as pa
from numcodecs import zstd

NASTY: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, float("nan"), "",
    "x" * 70_000, "../../etc/passwd", "/etc/passwd", "shards/../../x", "\x00", "\ud800", "zarr", "sha256:" + "0" * 64,
    [], {}, [[]] * 1000, {"a": {"b": {}}}, [1] * 10_000, "pickle", "numcodecs.pickles", "gzip", "uint64", "object",
    "<i8", [2**40], [2**20, 2**20], [-1], [0], [1.5], "NaN", "Infinity",
]  # fmt: skip


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
    """A few of: flipped bits, other bytes, cuts, copies, junk, extreme integers."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            del data[place : place + rng.choice([1, 4, 64, 1024])]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.choice([1, 4, 64]))
        elif kind == 4:
            source = rng.randrange(len(data) + 1)
            data[place : place + 16] = data[source : source + 16]
        elif kind == 5:
            width = rng.choice([2, 4, 8])
            value = rng.choice([0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1])
            place = place // width * width
            data[place : place + width] = (value & (2 ** (8 * width) - 1)).to_bytes(width, "little")
        elif kind == 6 and rng.random() < 0.2:
            del data[place:]
    return bytes(data)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Replace, delete, add or rename one node, anywhere in the tree."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(NASTY)
    if isinstance(value, list):
        index = rng.randrange(len(value))
        if rng.random() < 0.3:
            return value[:index] + rng.choice([[], [value[index]] * 2, [rng.choice(NASTY)]]) + value[index + 1 :]
        return [*value[:index], mutate_json(rng, value[index]), *value[index + 1 :]]
    key = rng.choice(sorted(value))
    kind = rng.random()
    if kind < 0.1:
        return {name: item for name, item in value.items() if name != key}
    if kind < 0.2:
        return value | {str(rng.choice(NASTY))[:50]: rng.choice(NASTY)}
    if kind < 0.25:
        return {name + "x" if name == key else name: item for name, item in value.items()}
    return value | {key: mutate_json(rng, value[key])}


def mutate_zip(rng: random.Random, payload: bytes) -> bytes:
    """Change members of the zip: their JSON, their content before compression, their names, their number."""
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(rng.choice([1, 1, 2])):
        index = rng.randrange(len(members))
        name, content = members[index]
        kind = rng.random()
        if kind < 0.1:
            del members[index]
        elif kind < 0.2:
            members[index] = (rng.choice(["../../x", "/etc/x", "c/0", "zarr.json", name + "x", name.upper()]), content)
        elif kind < 0.3:
            members.insert(rng.randrange(len(members) + 1), (rng.choice([name, "x/zarr.json", "y"]), content))
        elif name.endswith(".json"):
            members[index] = (name, json.dumps(mutate_json(rng, json.loads(content))).encode("utf-8", "replace"))
        elif kind < 0.6:
            members[index] = (name, zstd.compress(mutate_bytes(rng, unpacked(content)), 1, True))
        elif kind < 0.7:
            members[index] = (name, zstd_zeros(rng.choice([0, 1, 1 << 16, 1 << 27, 1 << 32])))
        else:
            members[index] = (name, mutate_bytes(rng, content))
        if not members:
            break
    sink = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED] * 6 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return sink.getvalue()


def unpacked(content: bytes) -> bytes:
    try:
        return zstd.decompress(content)
    except RuntimeError:  # an earlier mutation has been here
        return content


def zstd_zeros(size: int) -> bytes:
    """A zstd frame that says it holds this many zeros, and does: four bytes for each 128 KiB (RFC 8878, RLE blocks)."""
    frame = bytearray(b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + size.to_bytes(8, "little"))
    left = size
    while True:
        block = min(left, 1 << 17)
        left -= block
        frame += (block << 3 | 1 << 1 | (not left)).to_bytes(3, "little") + b"\0"
        if not left:
            return bytes(frame)


def mutate_arrow(rng: random.Random, payload: bytes) -> bytes:
    """Change the batch: its metadata, its columns' values, types, names and number."""
    batch = pa.ipc.open_file(payload).get_batch(0)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    metadata = dict(batch.schema.metadata or {})
    kind = rng.random()
    name = rng.choice(sorted(columns))
    if kind < 0.4 and metadata:
        key = rng.choice(sorted(metadata))
        try:
            changed = json.dumps(mutate_json(rng, json.loads(metadata[key]))).encode("utf-8", "replace")
        except ValueError:
            changed = mutate_bytes(rng, metadata[key])
        metadata[key] = changed
    elif kind < 0.5:
        del columns[name]
    elif kind < 0.6:
        columns[name + "x"] = columns.pop(name)
    elif kind < 0.8:
        columns[name] = columns[rng.choice(sorted(columns))]
    else:
        column = columns[name]
        buffers = [buffer and pa.py_buffer(mutate_same(rng, buffer)) for buffer in column.buffers()]
        columns[name] = _with_buffers(column, buffers)
    compression = rng.choice(["zstd", "zstd", "lz4", None])
    if rng.random() < 0.03:  # a few kilobytes that ask for more than a gigabyte
        compression = "zstd"
        columns = dict.fromkeys(
            columns, pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1 << 28, np.uint8)), 1 << 28)
        )
    elif rng.random() < 0.1:
        rows = rng.choice([0, 2])
        columns = {key: pa.concat_arrays([column] * rows) if rows else column[:0] for key, column in columns.items()}
    schema = pa.schema([pa.field(key, column.type, False) for key, column in columns.items()], metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    return sink.getvalue().to_pybytes()


def mutate_same(rng: random.Random, buffer: pa.Buffer) -> bytes:
    """Mutated content of the same length."""
    raw = buffer.to_pybytes()
    return mutate_bytes(rng, raw)[: len(raw)].ljust(len(raw), b"\xff")


def _with_buffers(column: pa.Array, buffers: list[pa.Buffer | None]) -> pa.Array:
    """The same array over other buffers, taken in the order in which ``buffers()`` lists them."""
    own = [buffers.pop(0) for _ in range(column.type.num_buffers)]
    if column.type.num_fields:
        child = _with_buffers(column.values, buffers)
        return pa.Array.from_buffers(column.type, len(column), own, children=[child])
    return pa.Array.from_buffers(column.type, len(column), own)
