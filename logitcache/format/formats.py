"""Shard formats by name. A format turns named arrays into the bytes of one file, and back."""

from __future__ import annotations

from typing import Any, BinaryIO, Literal, Protocol

from numpy.typing import NDArray
from zarr import Group

from logitcache.errors import ConfigError, CorruptCacheError, TargetsError
from logitcache.format.arrays import ShardArrays
from logitcache.format.arrow_shard import ArrowShards
from logitcache.format.encoding import Encoding, decode_arrays, encode_arrays
from logitcache.format.header import read_header
from logitcache.format.stored import StoredShard, size_limit
from logitcache.format.zarr_shard import ZarrShards

ShardFormatName = Literal["zarr", "arrow"]


class ShardFormat(Protocol):
    """One container for stored arrays."""

    #: Ending of a shard file's name, with its dot.
    suffix: str
    #: First bytes of a shard file.
    magic: bytes

    def write(self, stored: StoredShard) -> bytes:
        """Return the file's bytes; equal input gives equal bytes."""

    def read(self, payload: bytes | memoryview) -> StoredShard:
        """Return what was written.

        Raises:
            CorruptCacheError: the payload isn't what :meth:`write` would have written.
        """

    def read_one(self, file: BinaryIO, name: str) -> NDArray[Any]:
        """Return one array of a shard's file without reading the others.

        Raises:
            CorruptCacheError: the file isn't a shard in this format, or has no such array.
        """

    def compressed_bytes(self, name: str, array: NDArray[Any]) -> int:
        """Bytes of an array in the file, without its metadata."""


_FORMATS: dict[str, ShardFormat] = {"zarr": ZarrShards(), "arrow": ArrowShards()}


def get_format(name: str) -> ShardFormat:
    """Return a shard format by name.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in _FORMATS:
        raise ConfigError(f"shard format {name!r} is not known: choose one of {', '.join(_FORMATS)}")
    return _FORMATS[name]


def format_of(payload: bytes) -> ShardFormat:
    """Find a shard's format from its first bytes.

    Raises:
        CorruptCacheError: it is none of the formats.
    """
    for shard_format in _FORMATS.values():
        if payload.startswith(shard_format.magic):
            return shard_format
    raise CorruptCacheError(f"not a shard: it begins with {payload[:6]!r}")


def encode_shard(arrays: ShardArrays, encoding: Encoding, shard_format: ShardFormatName) -> bytes:
    """Encode a shard into the bytes of its file; equal input gives equal bytes.

    Raises:
        TargetsError: the arrays don't fit together, or hold NaN, +inf, a rising row or an id outside the vocabulary.
        ConfigError: there is no such format.
    """
    stored = encode_arrays(arrays, encoding)
    payload = get_format(shard_format).write(stored)
    claimed = max(read_header(stored.attributes).decoded_bytes, sum(array.nbytes for array in stored.arrays.values()))
    if claimed > size_limit(len(payload)):
        raise TargetsError(
            f"{claimed:,} bytes of targets shrink to {len(payload):,}, more than readers allow: make shards smaller"
        )
    return payload


def decode_shard(payload: bytes | memoryview, shard_format: ShardFormatName) -> ShardArrays:
    """Decode the bytes of a shard's file. The arrays may be read-only.

    Raises:
        CorruptCacheError: the payload is damaged, or was not written by :func:`encode_shard`.
        ConfigError: there is no such format.
    """
    return decode_arrays(get_format(shard_format).read(payload), size_limit(len(payload)))


def open_group(payload: bytes, shard_format: ShardFormatName, where: str) -> Group:
    """Open the bytes of a Zarr shard's file as a zarr group that can't be written to.

    Its arrays (uint8, uint32 or float32) are listed in docs/reference/shards.md. Each is decompressed when it is read.

    Args:
        payload: the file's bytes.
        shard_format: what the cache says the file is.
        where: the file's place, for messages.

    Raises:
        ConfigError: it is a shard of another format.
        CorruptCacheError: the payload isn't a Zarr shard.
    """
    if shard_format != "zarr":
        raise ConfigError(
            f"{where} has the format {shard_format}, which zarr doesn't open: "
            "make a Zarr copy of the cache with `logitcache convert --format zarr`"
        )
    try:
        return ZarrShards().group(payload)
    except CorruptCacheError as error:
        raise CorruptCacheError(f"{where}: {error}") from error
