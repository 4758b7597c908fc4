"""Zarr shards: one zip file that ``zarr.open`` reads, with one group and one chunk (or a few) an array.

The zip is stored, not compressed; names come in order, with the date 1980-01-01, so that equal arrays give equal bytes.
Reading goes straight to the chunks: every one must be there, and is checked against its array's metadata before it is
decompressed. (zarr itself would take a missing chunk for one full of fill values.)
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from typing import Any

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from logitcache.cache.stored import StoredShard, zstd_level
from logitcache.errors import CorruptCacheError

_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644
_DTYPES = {"uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "float32": np.float32}


class ZarrShards:
    """The shard format ``zarr``."""

    suffix = ".zarr.zip"
    magic = b"PK\x03\x04"

    def write(self, stored: StoredShard) -> bytes:
        """Return the bytes of a zip store."""
        file = io.BytesIO()
        group = {"zarr_format": 3, "node_type": "group", "attributes": dict(stored.attributes)}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, "zarr.json", _canonical(group))
            for name in sorted(stored.arrays):
                array = np.ascontiguousarray(stored.arrays[name])
                _add(archive, f"{name}/zarr.json", _canonical(_metadata(name, array)))
                if array.size:
                    key = "/".join(["c"] + ["0"] * array.ndim)
                    _add(archive, f"{name}/{key}", zstd.compress(array, zstd_level(name), True))
        return file.getvalue()

    def read(self, payload: bytes | memoryview) -> StoredShard:
        """Return what was written, checked."""
        try:
            with zipfile.ZipFile(io.BytesIO(payload)) as archive:
                members = {info.filename: archive.read(info) for info in archive.infolist()}
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            EOFError,
            OSError,
            ValueError,
            struct.error,
            KeyError,
        ) as error:
            raise CorruptCacheError(f"not a zip file that can be read: {error}") from error
        group = _parse(members, "zarr.json")
        names = [name.removesuffix("/zarr.json") for name in members if name.endswith("/zarr.json")]
        arrays = {name: _read_array(members, name) for name in names}
        return StoredShard(arrays, group.get("attributes", {}))

    def compressed_bytes(self, name: str, array: NDArray[Any]) -> int:
        """Bytes of an array's chunk."""
        return len(zstd.compress(np.ascontiguousarray(array), zstd_level(name), True)) if array.size else 0


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = 3
    info.external_attr = _MODE << 16
    archive.writestr(info, content)


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _metadata(name: str, array: NDArray[Any]) -> dict[str, Any]:
    bytes_codec: dict[str, Any] = {"name": "bytes"}
    if array.dtype.itemsize > 1:
        bytes_codec["configuration"] = {"endian": "little"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(1, size) for size in array.shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [bytes_codec, {"name": "zstd", "configuration": {"level": zstd_level(name), "checksum": True}}],
        "attributes": {},
    }


def _parse(members: dict[str, bytes], name: str) -> dict[str, Any]:
    if name not in members:
        raise CorruptCacheError(f"{name} is missing")
    try:
        value = json.loads(members[name])
    except (ValueError, RecursionError) as error:
        raise CorruptCacheError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCacheError(f"{name} is not a JSON object")
    return value


def _read_array(members: dict[str, bytes], name: str) -> NDArray[Any]:
    metadata = _parse(members, f"{name}/zarr.json")
    shape, dtype = metadata.get("shape"), _DTYPES.get(str(metadata.get("data_type")))
    if dtype is None or not isinstance(shape, list):
        raise CorruptCacheError(f"{name}: shape {shape} or data type {metadata.get('data_type')} is not allowed")
    empty = np.zeros(0, dtype)
    if math.prod(shape) == 0:
        return empty.reshape(shape)
    key = "/".join(["c"] + ["0"] * len(shape))
    if f"{name}/{key}" not in members:
        raise CorruptCacheError(f"{name}: the chunk {key} is missing")
    size = math.prod(shape) * empty.itemsize
    try:
        content = zstd.decompress(members[f"{name}/{key}"])
    except (RuntimeError, ValueError) as error:
        raise CorruptCacheError(f"{name}: the chunk {key} can't be decompressed: {error}") from error
    if len(content) != size:
        raise CorruptCacheError(f"{name}: the chunk {key} holds {len(content)} bytes, not {size}")
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape)
