"""Zarr shards: one zip file that ``zarr.open`` reads, holding one group, and one chunk an array.

zarr-python makes the metadata and the chunks; they are put into a zip file without further compression. Reading uses
the chunks directly: each must be there, and is checked against its array's metadata before it is decompressed. (zarr
itself reads a missing chunk as fill values, and is slower: see docs/reference/shards.md.)
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, BinaryIO

import numpy as np
import zarr
from numcodecs import zstd
from numpy.typing import NDArray
from zarr.abc.codec import Codec
from zarr.buffer import default_buffer_prototype
from zarr.buffer.cpu import Buffer, NDBuffer
from zarr.codecs import BytesCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.group import GroupMetadata
from zarr.core.metadata import ArrayV3Metadata
from zarr.core.sync import sync
from zarr.dtype import ZDType, parse_dtype
from zarr.storage import MemoryStore

from logitcache.errors import CorruptCacheError
from logitcache.format.stored import DTYPES, StoredShard, size_limit, zstd_level
from logitcache.format.stored_zip import read_members, write_zip, zip_members

_METADATA = "zarr.json"
_MAX_DIMENSIONS = 4
_LEVELS = range(-(1 << 17), 23)
#: Empty fields that some versions of zarr write: logitcache doesn't write them, and ignores them when it reads.
_EMPTY_FIELDS: dict[str, Any] = {"storage_transformers": [], "consolidated_metadata": None}
#: Bytes of the content size in a zstd frame's header, by the two highest bits of its descriptor.
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)

_Members = Mapping[str, memoryview]
_Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class ZarrShards:
    """The shard format ``zarr``."""

    suffix = ".zarr.zip"
    magic = b"PK\x03\x04"

    def write(self, stored: StoredShard) -> bytes:
        """Return the bytes of a zip store."""
        metadata = {name: _array_metadata(name, values) for name, values in stored.arrays.items()}
        # One call for all: each call of zarr that isn't async waits for zarr's own thread.
        chunks = sync(_encode_chunks(stored.arrays, metadata))
        members: dict[str, bytes | memoryview] = {
            _METADATA: _metadata_bytes(GroupMetadata(attributes=dict(stored.attributes), zarr_format=3))
        }
        for name in sorted(stored.arrays):
            members[f"{name}/{_METADATA}"] = _metadata_bytes(metadata[name])
            if name in chunks:
                members[_chunk_key(name, stored.arrays[name].ndim)] = chunks[name].as_numpy_array().data
        return write_zip(members)

    def read(self, payload: bytes | memoryview) -> StoredShard:
        """Return what was written.

        Raises:
            CorruptCacheError: the payload isn't a shard in this format.
        """
        members = dict(zip_members(memoryview(payload)))
        attributes, layout = _check(members, len(payload))
        return StoredShard({name: _read_chunk(members, name, *layout[name]) for name in layout}, attributes)

    def read_one(self, file: BinaryIO, name: str) -> NDArray[Any]:
        """Return one array of a shard's file; of the rest, only the zip's directory is read.

        Raises:
            CorruptCacheError: the file isn't a shard in this format, or has no such array.
        """
        members = read_members(file, f"{name}/")
        shape, dtype = _shape_and_dtype(members, name)
        size = file.seek(0, io.SEEK_END)
        if math.prod(shape) * dtype.itemsize > size_limit(size):
            raise CorruptCacheError(f"the array {name} claims a shape of {shape}, too large for its file")
        _check_chunk(members, name, shape, dtype)
        return _read_chunk(members, name, shape, dtype)

    def group(self, payload: bytes | memoryview) -> zarr.Group:
        """Open a shard as a zarr group that can't be written to. Its arrays are decoded when they are read.

        Raises:
            CorruptCacheError: the payload isn't a shard in this format. (zarr checks a chunk's checksum later, when
                the array is read, and raises RuntimeError.)
        """
        members = dict(zip_members(memoryview(payload)))
        _check(members, len(payload))
        buffers: dict[str, Any] = {
            name: Buffer.from_array_like(np.frombuffer(view, np.uint8)) for name, view in members.items()
        }
        return zarr.open_group(MemoryStore(buffers, read_only=True), mode="r", zarr_format=3)

    def compressed_bytes(self, name: str, array: NDArray[Any]) -> int:
        """Bytes of an array's chunk."""
        return len(zstd.compress(np.ascontiguousarray(array), zstd_level(name), True)) if array.size else 0


async def _encode_chunks(
    arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, ArrayV3Metadata]
) -> dict[str, Buffer]:
    """The chunk of each array that isn't empty, by zarr's codecs. Arrays with the same codecs go through them
    together. (A store and a zarr array for each would give the same bytes, and cost a small shard twice the time.)"""
    together: dict[tuple[Any, ...], list[str]] = {}
    for name, values in arrays.items():
        if values.size:
            together.setdefault(metadata[name].codecs, []).append(name)
    chunks: dict[str, Buffer] = {}
    for codecs, names in together.items():
        specs = [_spec(metadata[name], arrays[name].shape) for name in names]
        encoded: Iterable[Any] = [NDBuffer.from_numpy_array(arrays[name]) for name in names]
        for codec in codecs:
            encoded = await codec.encode(zip(encoded, specs, strict=True))
        chunks.update(zip(names, encoded, strict=True))
    return chunks


def _spec(metadata: ArrayV3Metadata, shape: tuple[int, ...]) -> ArraySpec:
    config = ArrayConfig(order="C", write_empty_chunks=True)
    return ArraySpec(shape, metadata.data_type, metadata.fill_value, config, default_buffer_prototype())


def _array_metadata(name: str, values: NDArray[Any]) -> ArrayV3Metadata:
    return ArrayV3Metadata(
        shape=values.shape,
        data_type=_zarr_dtype(values.dtype),
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": [max(1, size) for size in values.shape]}},
        chunk_key_encoding={"name": "default", "configuration": {"separator": "/"}},
        fill_value=0,
        codecs=_codecs(zstd_level(name)),
        attributes={},
        dimension_names=None,
    )


# Both are kept, as zarr takes longer to make them than to write a small array.
@cache
def _codecs(level: int) -> tuple[Codec, ...]:
    return BytesCodec(endian="little"), ZstdCodec(level=level, checksum=True)


@cache
def _zarr_dtype(dtype: np.dtype[Any]) -> ZDType[Any, Any]:
    return parse_dtype(dtype, zarr_format=3)


def _metadata_bytes(metadata: ArrayV3Metadata | GroupMetadata) -> bytes:
    """The metadata of a group or an array as JSON, the same bytes with every version of zarr."""
    value = {key: field for key, field in metadata.to_dict().items() if not (key in _EMPTY_FIELDS and not field)}
    if "fill_value" in value:
        value["fill_value"] = 0  # zarr writes 0.0 for float32, which is the same number
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _is_empty_field(key: str, field: Any) -> bool:
    return key in _EMPTY_FIELDS and field == _EMPTY_FIELDS[key]


def _chunk_key(name: str, dimensions: int) -> str:
    return "/".join([name, "c"] + ["0"] * dimensions)


def _check(members: _Members, size: int) -> tuple[dict[str, Any], _Layout]:
    """Check a shard of ``size`` bytes, except what its chunks hold; return its attributes and its arrays' layout."""
    group = _parse(members, _METADATA)
    attributes = group.pop("attributes", None)
    if group != {"zarr_format": 3, "node_type": "group"} or not isinstance(attributes, dict):
        raise CorruptCacheError(f"{_METADATA} doesn't describe a zarr 3 group")
    names = [name.removesuffix(f"/{_METADATA}") for name in members if name.endswith(f"/{_METADATA}")]
    layout = {name: _shape_and_dtype(members, name) for name in names}
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
    if total > size_limit(size):
        raise CorruptCacheError(f"its arrays claim {total:,} bytes, too many for a file of {size:,}")
    for name, (shape, dtype) in layout.items():
        _check_chunk(members, name, shape, dtype)
    chunks = {_chunk_key(name, len(shape)) for name, (shape, _) in layout.items() if math.prod(shape)}
    unknown = members.keys() - chunks - {_METADATA} - {f"{name}/{_METADATA}" for name in names}
    if unknown:
        raise CorruptCacheError(f"it holds files that aren't part of the format: {', '.join(sorted(unknown))[:200]}")
    return attributes, layout


def _parse(members: _Members, name: str) -> dict[str, Any]:
    if name not in members:
        raise CorruptCacheError(f"{name} is missing")
    try:
        value = json.loads(bytes(members[name]))
    except (ValueError, RecursionError) as error:
        raise CorruptCacheError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCacheError(f"{name} is not a JSON object")
    return {key: field for key, field in value.items() if not _is_empty_field(key, field)}


def _shape_and_dtype(members: _Members, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """An array's shape and dtype. All other metadata must be what logitcache writes, except for the zstd level: so no
    other codec and no other chunk grid is ever used."""
    metadata = _parse(members, f"{name}/{_METADATA}")
    shape, dtype = metadata.get("shape"), metadata.get("data_type")
    sizes = isinstance(shape, list) and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
    if not sizes or not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_DIMENSIONS or dtype not in DTYPES:
        raise CorruptCacheError(f"{name}: shape {str(shape)[:80]} of {str(dtype)[:40]} is not allowed")
    level = 0
    with suppress(KeyError, IndexError, TypeError):  # then the comparison says what is wrong
        level = metadata["codecs"][1]["configuration"]["level"]
    if type(level) is not int or level not in _LEVELS:
        raise CorruptCacheError(f"{name}: zstd has no level {str(level)[:40]}")
    wanted = _wanted_metadata(shape, dtype, level)
    if metadata != wanted:
        field = next(key for key in {**metadata, **wanted} if metadata.get(key, ...) != wanted.get(key, ...))
        raise CorruptCacheError(f"{name}: {field} {str(metadata.get(field))[:120]} is not allowed in a shard")
    return tuple(shape), np.dtype(dtype).newbyteorder("<")


def _wanted_metadata(shape: list[int], dtype: str, level: int) -> dict[str, Any]:
    to_bytes: dict[str, Any] = {"name": "bytes"}
    if dtype != "uint8":
        to_bytes["configuration"] = {"endian": "little"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, size) for size in shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [to_bytes, {"name": "zstd", "configuration": {"level": level, "checksum": True}}],
        "attributes": {},
    }


def _check_chunk(members: _Members, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    expected = math.prod(shape) * dtype.itemsize
    if not expected:
        return
    key = _chunk_key(name, len(shape))
    if key not in members:
        raise CorruptCacheError(f"the chunk {key} is missing")
    claimed = _content_size(members[key])
    if claimed != expected:
        raise CorruptCacheError(f"the chunk {key} claims to hold {claimed} bytes; its array has {expected}")


def _read_chunk(members: _Members, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.empty(shape, dtype)
    if array.size:
        key = _chunk_key(name, len(shape))
        try:
            zstd.decompress(members[key], array)
        except (RuntimeError, ValueError) as error:
            raise CorruptCacheError(f"the chunk {key} can't be decompressed: {error}") from error
    return array


def _content_size(frame: memoryview) -> int | None:
    """The content size in a zstd frame's header (RFC 8878, 3.1.1.1); None if it has no size or no checksum."""
    if bytes(frame[:4]) != b"\x28\xb5\x2f\xfd" or len(frame) < 6:
        return None
    descriptor = frame[4]
    single_segment, has_checksum, dictionary = descriptor >> 5 & 1, descriptor >> 2 & 1, descriptor & 3
    if dictionary or not has_checksum:
        return None
    start = 5 if single_segment else 6
    size = _CONTENT_SIZE_BYTES[descriptor >> 6] or single_segment
    value = int.from_bytes(frame[start : start + size], "little")
    return (value + 256 if size == 2 else value) if size else None
