"""Read a file as a stream of bytes, compressed or not. A file that is cut off or damaged is an error.

The file's name says how it is compressed. Its first bytes must agree, so that compressed data isn't read as text.
"""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from logitcache.data.files.kinds import COMPRESSIONS, compression_of
from logitcache.errors import DataError

_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 16
# Zstandard and LZ4 files may begin with skippable frames, which parallel compressors write.
_TO_SKIP = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))
_BZ2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # the first block, or the end mark of empty data
_MAGIC = {
    "gzip": (b"\x1f\x8b\x08",),
    "zstd": (b"\x28\xb5\x2f\xfd", *_TO_SKIP),
    "bz2": tuple(b"BZh%d%b" % (level, block) for level in range(1, 10) for block in _BZ2_BLOCKS),
    "xz": (b"\xfd7zXZ\x00",),
    "lz4": (b"\x04\x22\x4d\x18", *_TO_SKIP),
}
_OTHER_KINDS = {
    "a Parquet file; use --data-kind parquet": (b"PAR1\x15",),
    "an Arrow file; use --data-kind arrow": (b"ARROW1\x00\x00", b"FEA1"),
    "a zip archive; unpack it first": (b"PK\x03\x04",),
    "UTF-16 or UTF-32 text; convert it to UTF-8, for example with iconv": (
        b"\xff\xfe",
        b"\xfe\xff",
        b"\x00\x00\xfe\xff",
    ),
}


def open_bytes(path: Path, name: str) -> io.BufferedReader:
    """Open a file and decompress it while it is read; ``name`` is its name in messages.

    Reading raises OSError, EOFError or lzma.LZMAError if the compressed data is damaged or ends too early.

    Raises:
        DataError: the first bytes don't agree with the name, or belong to another kind of file.
        OSError: the file can't be read.
    """
    compression = compression_of(path)
    with path.open("rb") as plain:
        head = plain.read(_HEAD_BYTES)
    if compression is not None and not head.startswith(_MAGIC[compression]):
        raise DataError(f"{name} holds no {compression} data; its name says {path.suffix}")
    if compression is None:
        _refuse_other_kind(head, name)
    return _open(path, compression)


def _open(path: Path, compression: str | None) -> io.BufferedReader:
    if compression is None:
        raw: Any = path.open("rb", buffering=0)
    elif compression == "xz":
        raw = _XzReader(path.open("rb"))
    else:
        raw = pa.input_stream(str(path), compression=compression)
    return io.BufferedReader(raw, _BUFFER_BYTES)


def _refuse_other_kind(head: bytes, name: str) -> None:
    for suffix, compression in COMPRESSIONS.items():
        if head.startswith(_MAGIC[compression]):
            raise DataError(f"{name} holds {compression} data; add {suffix} to its name")
    for what, starts in _OTHER_KINDS.items():
        if head.startswith(starts):
            raise DataError(f"{name} is {what}")


class _XzReader(io.RawIOBase):
    """Read all streams of an xz file. Python's own reader silently ignores damaged data after the first stream."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor: lzma.LZMADecompressor | None = None
        self._packed = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor is None:
                if not self._next_stream():
                    return 0
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            if self._decompressor.needs_input and not self._packed:
                self._packed = self._file.read(_BUFFER_BYTES)
                if not self._packed:
                    raise EOFError("the compressed data ends too early")
            data = self._decompressor.decompress(self._packed, max_length=len(buffer))
            self._packed = b""
            if self._decompressor.eof:
                self._packed = self._decompressor.unused_data
                self._decompressor = None
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _next_stream(self) -> bool:
        """Go to the next stream, and skip zeros between two streams; False at the end of the file."""
        while not (rest := self._packed.lstrip(b"\x00")):
            self._packed = self._file.read(_BUFFER_BYTES)
            if not self._packed:
                return False
        self._packed = rest
        return True
