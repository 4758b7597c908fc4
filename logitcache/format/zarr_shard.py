"""Zarr shards: one zip file that ``zarr.open`` reads, holding one group, and one chunk an array.

The zip is stored, not compressed; names come in order, with the date 1980-01-01, so that equal arrays give equal bytes.
Reading goes straight to the chunks: every one must be there, and is checked against its array's metadata before it is
decompressed. (zarr itself would take a missing chunk for one full of fill values.)
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError
from logitcache.format.stored import DTYPES, StoredShard, size_limit, zstd_level
from logitcache.utils.reasons import reason

_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644
_UNIX = 3
_LOCAL_HEADER = 30
_METADATA = "zarr.json"
_MAX_DIMENSIONS = 4
#: Bytes of the content size in a zstd frame's header, by the two highest bits of its descriptor.
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)

_Members = Mapping[str, memoryview]


class ZarrShards:
    """The shard format ``zarr``."""

    suffix = ".zarr.zip"
    magic = b"PK\x03\x04"

    def write(self, stored: StoredShard) -> bytes:
        """Return the bytes of a zip store."""
        file = io.BytesIO()
        group = {"zarr_format": 3, "node_type": "group", "attributes": dict(stored.attributes)}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, _METADATA, _canonical(group))
            for name in sorted(stored.arrays):
                array = np.ascontiguousarray(stored.arrays[name])
                _add(archive, f"{name}/{_METADATA}", _canonical(_array_metadata(name, array.shape, array.dtype.name)))
                if array.size:
                    _add(archive, _chunk_key(name, array.ndim), _compress(name, array))
        return file.getvalue()

    def read(self, payload: bytes | memoryview) -> StoredShard:
        """Return what was written.

        Raises:
            CorruptCacheError: the payload isn't a shard in this format.
        """
        view = memoryview(payload)
        members = dict(_members(view))
        group = _parse(members, _METADATA)
        attributes = group.pop("attributes", None)
        if group != {"zarr_format": 3, "node_type": "group"} or not isinstance(attributes, dict):
            raise CorruptCacheError(f"{_METADATA} doesn't describe a zarr 3 group")
        names = [name.removesuffix(f"/{_METADATA}") for name in members if name.endswith(f"/{_METADATA}")]
        shapes = {name: _shape_and_dtype(members, name) for name in names}
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
        if total > size_limit(len(view)):
            raise CorruptCacheError(f"its arrays claim {total:,} bytes, too many for a file of {len(view):,}")
        arrays = {name: _read_chunk(members, name, *shapes[name]) for name in names}
        chunks = {_chunk_key(name, array.ndim) for name, array in arrays.items() if array.size}
        unknown = members.keys() - chunks - {_METADATA} - {f"{name}/{_METADATA}" for name in names}
        if unknown:
            raise CorruptCacheError(
                f"it holds files that aren't part of the format: {', '.join(sorted(unknown))[:200]}"
            )
        return StoredShard(arrays, attributes)

    def read_one(self, file: BinaryIO, name: str) -> NDArray[Any]:
        """Return one array of a shard's file; of the rest, only the zip's directory is read.

        Raises:
            CorruptCacheError: the file isn't a shard in this format, or has no such array.
        """

        def content(start: int, end: int) -> memoryview:
            file.seek(start)
            return memoryview(file.read(end - start))

        size = file.seek(0, io.SEEK_END)
        wanted = {info.orig_filename: info for info in _directory(file) if info.orig_filename.startswith(f"{name}/")}
        members = {key: _stored(info, content, size) for key, info in wanted.items()}
        shape, dtype = _shape_and_dtype(members, name)
        if math.prod(shape) * dtype.itemsize > size_limit(size):
            raise CorruptCacheError(f"the array {name} claims a shape of {shape}, too large for its file")
        return _read_chunk(members, name, shape, dtype)

    def compressed_bytes(self, name: str, array: NDArray[Any]) -> int:
        """Bytes of an array's chunk."""
        return len(_compress(name, np.ascontiguousarray(array))) if array.size else 0


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = _UNIX
    info.external_attr = _MODE << 16
    archive.writestr(info, content)


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _compress(name: str, array: NDArray[Any]) -> bytes:
    content: bytes = zstd.compress(array, zstd_level(name), True)
    return content


def _chunk_key(name: str, dimensions: int) -> str:
    return "/".join([name, "c"] + ["0"] * dimensions)


def _array_metadata(name: str, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    to_bytes: dict[str, Any] = {"name": "bytes"}
    if dtype != "uint8":
        to_bytes["configuration"] = {"endian": "little"}
    level = {"level": zstd_level(name), "checksum": True}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, size) for size in shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [to_bytes, {"name": "zstd", "configuration": level}],
        "attributes": {},
    }


def _members(view: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Names and contents of the zip's files, as views: each must be stored as it is, once, and lie inside the file."""
    names = set()
    for info in _directory(io.BytesIO(view)):
        name = info.orig_filename
        if name in names:
            raise CorruptCacheError(f"the zip file holds {name[:80]!r} twice")
        names.add(name)
        yield name, _stored(info, lambda start, end: view[start:end], len(view))


def _directory(file: BinaryIO) -> list[zipfile.ZipInfo]:
    try:
        return zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, IndexError) as error:
        raise CorruptCacheError(f"not a zip file: {reason(error)}") from error


def _stored(info: zipfile.ZipInfo, content_of: Callable[[int, int], memoryview], size: int) -> memoryview:
    """The content of one entry of a zip file of ``size`` bytes, which ``content_of`` reads from and to."""
    name = info.orig_filename
    start = info.header_offset + _LOCAL_HEADER + len(name.encode()) + len(info.extra)
    end = start + info.file_size
    plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size and not info.extra
    if not plain or info.flag_bits or end > size or info.header_offset < 0:
        raise CorruptCacheError(f"the zip file's entry {name[:80]!r} is not a plain stored file")
    if content_of(info.header_offset + _LOCAL_HEADER, start) != name.encode():
        raise CorruptCacheError(f"the zip file's entry {name[:80]!r} is not a plain stored file")
    content = content_of(start, end)
    if name.endswith(_METADATA) and zlib.crc32(content) != info.CRC:  # chunks bring checksums of their own
        raise CorruptCacheError(f"{name[:80]}: the zip file's checksum doesn't match")
    return content


def _parse(members: _Members, name: str) -> dict[str, Any]:
    if name not in members:
        raise CorruptCacheError(f"{name} is missing")
    try:
        value = json.loads(bytes(members[name]))
    except (ValueError, RecursionError) as error:
        raise CorruptCacheError(f"{name} is not valid JSON: {reason(error)}") from error
    if not isinstance(value, dict):
        raise CorruptCacheError(f"{name} is not a JSON object")
    return value


def _shape_and_dtype(members: _Members, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """An array's metadata, which but for the zstd level must be what this version writes: so there is no other codec,
    and no other chunk grid, that could be asked for."""
    metadata = _parse(members, f"{name}/{_METADATA}")
    shape, dtype = metadata.get("shape"), metadata.get("data_type")
    sizes = isinstance(shape, list) and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
    if not sizes or not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_DIMENSIONS or dtype not in DTYPES:
        raise CorruptCacheError(f"{name}: shape {str(shape)[:80]} of {str(dtype)[:40]} is not allowed")
    wanted = _array_metadata(name, tuple(shape), dtype)
    with suppress(KeyError, IndexError, TypeError):  # then the comparison says what is wrong
        wanted["codecs"][1]["configuration"]["level"] = metadata["codecs"][1]["configuration"]["level"]
    if metadata != wanted:
        field = next(key for key in {**metadata, **wanted} if metadata.get(key, ...) != wanted.get(key, ...))
        raise CorruptCacheError(f"{name}: {field} {str(metadata.get(field))[:120]} is not allowed in a shard")
    return tuple(shape), np.dtype(dtype).newbyteorder("<")


def _read_chunk(members: _Members, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.empty(shape, dtype)
    if array.size == 0:
        return array
    key = _chunk_key(name, len(shape))
    if key not in members:
        raise CorruptCacheError(f"the chunk {key} is missing")
    claimed = _content_size(members[key])
    if claimed != array.nbytes:
        raise CorruptCacheError(f"the chunk {key} claims to hold {claimed} bytes; its array has {array.nbytes}")
    try:
        zstd.decompress(members[key], array)
    except (RuntimeError, ValueError) as error:
        raise CorruptCacheError(f"the chunk {key} can't be decompressed: {reason(error)}") from error
    return array


def _content_size(frame: memoryview) -> int | None:
    """What a zstd frame's header says it holds (RFC 8878, 3.1.1.1); None if it doesn't, or has no checksum."""
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
