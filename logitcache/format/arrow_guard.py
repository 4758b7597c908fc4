"""Read how many bytes an Arrow IPC file claims to hold, before pyarrow decompresses it.

pyarrow checks that a file is well formed, but it trusts the sizes in it: a file of a hundred kilobytes can ask for
gigabytes of memory. The sizes are in the file's footer and record batch headers (FlatBuffers, see Arrow's ``File.fbs``
and ``Message.fbs``), and only those are read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_MAGIC = b"ARROW1"
_CONTINUATION = 0xFFFFFFFF
_RECORD_BATCH = 3
# Field numbers in the schemas named above.
_FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER = 1, 2
_BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 3


def claimed_bytes(payload: Any, *, compressed: bool) -> int:
    """Bytes of all record batches' buffers after decompression, as the file claims.

    Args:
        payload: the whole file, as an object that ``memoryview`` takes.
        compressed: whether compressed record batches are allowed.

    Raises:
        ValueError: not an Arrow IPC file of plain record batches, or compressed where that isn't allowed.
    """
    view = memoryview(payload)
    try:
        return sum(_batch_bytes(view, offset, length, compressed) for offset, length in _blocks(view))
    except (struct.error, IndexError) as error:
        raise ValueError("its footer or a batch header points outside the file") from error


def _blocks(view: memoryview) -> Iterator[tuple[int, int]]:
    """Offset and header length of every record batch, from the footer."""
    end = len(view) - len(_MAGIC) - 4
    if end < 8 or bytes(view[: len(_MAGIC)]) != _MAGIC or bytes(view[-len(_MAGIC) :]) != _MAGIC:
        raise ValueError("it doesn't begin and end as an Arrow IPC file does")
    start = end - _u32(view, end)
    if start < 8:
        raise ValueError("its footer is longer than the file")
    footer = start + _u32(view, start)
    if _vector(view, footer, _FOOTER_DICTIONARIES)[1]:
        raise ValueError("it has dictionaries, which aren't allowed")
    first, count = _vector(view, footer, _FOOTER_BATCHES)
    if count * 24 > len(view):
        raise ValueError("its footer lists more batches than the file can hold")
    for block in range(first, first + 24 * count, 24):
        yield struct.unpack_from("<qi", view, block)


def _batch_bytes(view: memoryview, offset: int, header_length: int, compressed: bool) -> int:
    if offset < 8 or header_length < 8 or _u32(view, offset) != _CONTINUATION:
        raise ValueError("a record batch has no header where the footer says")
    message = offset + 8 + _u32(view, offset + 8)
    kind = _field(view, message, _MESSAGE_HEADER_TYPE)
    header = _field(view, message, _MESSAGE_HEADER)
    if kind is None or header is None or view[kind] != _RECORD_BATCH:
        raise ValueError("a message is not a record batch")
    batch = header + _u32(view, header)
    is_compressed = _field(view, batch, _BATCH_COMPRESSION) is not None
    if is_compressed and not compressed:
        raise ValueError("its record batch is compressed, which isn't allowed here")
    first, count = _vector(view, batch, _BATCH_BUFFERS)
    total = 0
    for place in range(first, first + 16 * min(count, len(view)), 16):
        start, length = struct.unpack_from("<qq", view, place)
        if min(start, length) < 0:
            raise ValueError("a buffer has a negative place or length")
        # A compressed buffer begins with its length when decompressed, or -1 if it is stored as it is.
        claimed = struct.unpack_from("<q", view, offset + header_length + start)[0] if is_compressed and length else -1
        total += length if claimed < 0 else claimed
    return total


def _u32(view: memoryview, place: int) -> int:
    if place < 0:
        raise IndexError(place)
    return int(struct.unpack_from("<I", view, place)[0])


def _field(view: memoryview, table: int, number: int) -> int | None:
    """Offset of a table's field, None if it is absent. A FlatBuffers table begins with the distance to its vtable."""
    vtable = table - struct.unpack_from("<i", view, table)[0]
    if vtable < 0:
        raise IndexError(vtable)
    (size,) = struct.unpack_from("<H", view, vtable)
    if 4 + 2 * number + 2 > size:
        return None
    (shift,) = struct.unpack_from("<H", view, vtable + 4 + 2 * number)
    return table + shift if shift else None


def _vector(view: memoryview, table: int, number: int) -> tuple[int, int]:
    """Offset of a vector field's first item, and the number of items; 0 items if the field is absent."""
    field = _field(view, table, number)
    if field is None:
        return 0, 0
    start = field + _u32(view, field)
    return start + 4, _u32(view, start)
