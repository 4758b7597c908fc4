"""Decode text files as UTF-8, as a whole or line by line. The error for other bytes has their position."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from logitcache.errors import DataError

_CHUNK_BYTES = 1 << 20


def decode(data: bytes, where: str) -> str:
    """Decode UTF-8.

    Raises:
        DataError: a byte isn't UTF-8, or is NUL; the message names ``where``, the line and the byte in it.
    """
    if (at := data.find(0)) >= 0:
        raise DataError(f"{where} is not text: NUL at {_place(data, at)} (binary data, or UTF-16)")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 text: 0x{data[error.start]:02x} at {_place(data, error.start)}. "
            "Convert it, for example with iconv -f LATIN1 -t UTF-8"
        ) from error


def read_document(file: io.BufferedReader, name: str) -> str:
    """The whole file as one text, without a byte order mark.

    Raises:
        DataError: it isn't UTF-8 text.
    """
    return decode(file.read().removeprefix(codecs.BOM_UTF8), name)


def read_lines(file: io.BufferedReader, name: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers from 1. Each line ends with its newline; the last one may have none.

    Raises:
        DataError: a line isn't UTF-8 text.
    """
    for number, line in enumerate(file, start=1):
        yield number, decode(line if number > 1 else line.removeprefix(codecs.BOM_UTF8), f"{name} line {number}")


def read_chunks(file: io.BufferedReader, name: str) -> Iterator[str]:
    """The text in pieces of about a megabyte.

    Raises:
        DataError: it isn't UTF-8 text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    before = 0
    while True:
        data = file.read(_CHUNK_BYTES)
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place = before - len(pending) + error.start + 1
            raise DataError(f"{name} is not UTF-8 text: 0x{error.object[error.start]:02x} at byte {place}") from error
        if not before:
            text = text.removeprefix("\ufeff")
        before += len(data)
        if text:
            yield text
        if not data:
            return


def _place(data: bytes, at: int) -> str:
    line_start = data.rfind(b"\n", 0, at) + 1
    line = data.count(b"\n", 0, at)
    return f"line {line + 1}, byte {at - line_start + 1}" if line else f"byte {at - line_start + 1}"
