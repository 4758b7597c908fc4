"""Zip files without compression, with a fixed order and a fixed date: equal members give equal bytes."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from logitcache.errors import CorruptCacheError

_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644
_UNIX = 3
_LOCAL_HEADER = 30


def write_zip(members: Mapping[str, bytes | memoryview]) -> bytes:
    """Return a zip file of these members, in their order."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system = _UNIX
            info.external_attr = _MODE << 16
            archive.writestr(info, content)
    return file.getvalue()


def zip_members(view: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Names and contents of a zip file's members, as views.

    Raises:
        CorruptCacheError: it isn't a zip file; or a member is compressed, occurs twice, or is outside of the file.
    """
    names = set()
    for info in _directory(io.BytesIO(view)):
        name = info.orig_filename
        if name in names:
            raise CorruptCacheError(f"the zip file holds {name[:80]!r} twice")
        names.add(name)
        yield name, _content(info, lambda start, end: view[start:end], len(view))


def read_members(file: BinaryIO, prefix: str) -> dict[str, memoryview]:
    """Read the members whose names begin with ``prefix``; of the others, only the zip's directory is read.

    Raises:
        CorruptCacheError: as for :func:`zip_members`.
    """

    def content(start: int, end: int) -> memoryview:
        file.seek(start)
        return memoryview(file.read(end - start))

    size = file.seek(0, io.SEEK_END)
    wanted = {info.orig_filename: info for info in _directory(file) if info.orig_filename.startswith(prefix)}
    return {name: _content(info, content, size) for name, info in wanted.items()}


def _directory(file: BinaryIO) -> list[zipfile.ZipInfo]:
    try:
        return zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, IndexError) as error:
        raise CorruptCacheError(f"not a zip file: {error}") from error


def _content(info: zipfile.ZipInfo, content_of: Callable[[int, int], memoryview], size: int) -> memoryview:
    """The content of one entry of a zip file of ``size`` bytes; ``content_of(start, end)`` reads bytes of it."""
    name = info.orig_filename
    start = info.header_offset + _LOCAL_HEADER + len(name.encode()) + len(info.extra)
    end = start + info.file_size
    plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size and not info.extra
    if not plain or info.flag_bits or end > size or info.header_offset < 0:
        raise CorruptCacheError(f"the zip file's entry {name[:80]!r} is not a plain stored file")
    if content_of(info.header_offset + _LOCAL_HEADER, start) != name.encode():
        raise CorruptCacheError(f"the zip file's entry {name[:80]!r} is not a plain stored file")
    content = content_of(start, end)
    if name.endswith(".json") and zlib.crc32(content) != info.CRC:  # chunks have their own checksums
        raise CorruptCacheError(f"{name[:80]}: the zip file's checksum doesn't match")
    return content
