"""Zip and Arrow files around a shard that are damaged or made to mislead: always ``CorruptCacheError``."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numcodecs import zstd
from shard_strategies import stored_shard

from logitcache.errors import CorruptCacheError
from logitcache.format.formats import decode_shard, get_format

pytestmark = pytest.mark.hostile


def rezip(change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A Zarr shard with its files changed, and a valid zip around them."""
    payload = get_format("zarr").write(stored_shard())
    source = zipfile.ZipFile(io.BytesIO(payload))
    files = {name: source.read(name) for name in source.namelist()}
    change(files)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return target.getvalue()


def metadata(name: str, **fields: Any) -> Callable[[dict[str, bytes]], object]:
    """Change fields of an array's ``zarr.json``."""
    key = f"{name}/zarr.json"
    return lambda files: files.update({key: json.dumps({**json.loads(files[key]), **fields}).encode()})


def gzip_codec(files: dict[str, bytes]) -> None:
    codecs = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}]
    metadata("residual", codecs=codecs)(files)


def chunk_grid(size: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": [size]}}


CHUNK = "id_classes/c/0"

ZIPS: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "chunk gone": (lambda files: files.pop("id_classes/c/0"), "chunk id_classes/c/0 is missing"),
    "group gone": (lambda files: files.pop("zarr.json"), "zarr.json is missing"),
    "file more": (lambda files: files.update({"evil.py": b""}), "evil.py"),
    "path out": (lambda files: files.update({"../../evil": b""}), "evil"),
    "second chunk": (lambda files: files.update({"id_classes/c/1": b""}), "id_classes/c/1"),
    "other codec": (gzip_codec, "residual: codecs .* is not allowed"),
    "no codec": (metadata("residual", codecs=[{"name": "bytes"}]), "residual: codecs .* is not allowed"),
    "smaller chunks": (metadata("id_classes", chunk_grid=chunk_grid(8)), "id_classes: chunk_grid"),
    "object dtype": (metadata("residual", data_type="object"), "of object is not allowed"),
    "float64": (metadata("residual", data_type="float64"), "of float64 is not allowed"),
    "negative shape": (metadata("id_classes", shape=[-1]), "is not allowed"),
    "bool shape": (metadata("id_classes", shape=[True]), "is not allowed"),
    "deep shape": (metadata("id_classes", shape=[1] * 40), "is not allowed"),
    "huge shape": (metadata("id_classes", shape=[1 << 40], chunk_grid=chunk_grid(1 << 40)), "too many for a file of"),
    "attributes": (metadata("id_classes", attributes={"x": 1}), "id_classes: attributes"),
    "not JSON": (lambda files: files.update({"residual/zarr.json": b"{"}), "is not valid JSON"),
    "deep JSON": (lambda files: files.update({"residual/zarr.json": b"[" * 100_000}), "is not valid JSON"),
    "a list": (lambda files: files.update({"residual/zarr.json": b"[]"}), "is not a JSON object"),
    "an array for a group": (lambda files: files.update({"zarr.json": files["residual/zarr.json"]}), "zarr 3 group"),
    "chunk cut": (lambda files: files.update({CHUNK: files[CHUNK][:-9]}), "can't be decompressed"),
    "not zstd": (lambda files: files.update({"id_classes/c/0": b"12345678"}), "claims to hold None bytes"),
    "other size": (
        lambda files: files.update({"id_classes/c/0": zstd.compress(bytes(1 << 24), 1, True)}),
        "claims to hold 16777216 bytes",
    ),
    "no checksum": (lambda files: files.update({"id_classes/c/0": zstd.compress(bytes(1025), 1)}), "None bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", ZIPS)
def test_zip_files_are_checked(case: str) -> None:
    change, message = ZIPS[case]
    with pytest.raises(CorruptCacheError, match=message):
        decode_shard(rezip(change), "zarr")


def test_zip_that_is_rebuilt_alike_is_read() -> None:
    assert decode_shard(rezip(lambda files: None), "zarr").k == 7


def test_zip_entries_must_be_stored() -> None:
    with pytest.raises(CorruptCacheError, match="is not a plain stored file"):
        decode_shard(rezip(lambda files: None, zipfile.ZIP_DEFLATED), "zarr")


def test_zip_entry_twice() -> None:
    file = io.BytesIO(get_format("zarr").write(stored_shard()))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("zarr.json", b"{}")
    with pytest.raises(CorruptCacheError, match=r"'zarr\.json' twice"):
        decode_shard(file.getvalue(), "zarr")


def arrow_file(batches: list[pa.RecordBatch], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def arrow_batch() -> pa.RecordBatch:
    return pa.ipc.open_file(get_format("arrow").write(stored_shard())).get_batch(0)


def with_column(name: str, column: pa.Array) -> list[pa.RecordBatch]:
    batch = arrow_batch()
    place = batch.schema.get_field_index(name)
    return [batch.set_column(place, pa.field(name, column.type), column)]


def lists(values: Any, kind: pa.DataType) -> pa.Array:
    return pa.array([values], kind)


ARROWS: dict[str, tuple[Callable[[], list[pa.RecordBatch]], str]] = {
    "two batches": (lambda: [arrow_batch()] * 2, "2 record batches, not 1"),
    "no header": (lambda: [arrow_batch().replace_schema_metadata({})], "not an Arrow shard"),
    "header no JSON": (lambda: [arrow_batch().replace_schema_metadata({"logitcache": "{"})], "not an Arrow shard"),
    "header a list": (lambda: [arrow_batch().replace_schema_metadata({"logitcache": "[]"})], "not a JSON object"),
    "deep header": (
        lambda: [arrow_batch().replace_schema_metadata({"logitcache": "[" * 99_999})],
        "not an Arrow shard",
    ),
    "ordinary list": (lambda: with_column("id_classes", lists([1], pa.list_(pa.uint8()))), "which is not allowed"),
    "no list": (lambda: with_column("id_classes", pa.array([1], pa.uint8())), "which is not allowed"),
    "text": (lambda: with_column("id_classes", pa.array(["x"])), "which is not allowed"),
    "int64": (lambda: with_column("id_classes", lists([1], pa.list_(pa.int64(), 1))), "which is not allowed"),
    "null": (lambda: with_column("id_classes", lists(None, pa.list_(pa.uint8(), 2))), "nulls"),
    "null inside": (lambda: with_column("id_classes", lists([1, None], pa.list_(pa.uint8(), 2))), "nulls"),
    "two rows": (lambda: [pa.concat_batches([arrow_batch()] * 2)], "2 rows, not 1"),
    "no rows": (lambda: [arrow_batch().slice(0, 0)], "0 rows, not 1"),
    "name twice": (
        lambda: [pa.record_batch([arrow_batch()[0]] * 2, names=["a", "a"], metadata={"logitcache": "{}"})],
        "the same name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ARROWS)
def test_arrow_files_are_checked(case: str) -> None:
    make, message = ARROWS[case]
    with pytest.raises(CorruptCacheError, match=message):
        decode_shard(arrow_file(make(), compression="zstd"), "arrow")


def test_arrow_bomb_is_refused_by_its_claim() -> None:
    size = 280 << 20
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(size, np.uint8)), size)
    batch = pa.record_batch([zeros], names=["residual"])
    payload = arrow_file([batch], compression="zstd")
    assert len(payload) < 1 << 20
    with pytest.raises(CorruptCacheError, match="too many for a file of"):
        decode_shard(payload, "arrow")
