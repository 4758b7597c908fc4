"""Read rows of JSON: one object per line (`.jsonl`), or the objects of a `.json` file. Both are streamed."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

from logitcache.data.files.sources import Row
from logitcache.data.files.utf8 import read_chunks, read_lines
from logitcache.errors import DataError, LogitCacheWarning

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
#: An error this close to the end of the text may only mean that the text goes on: the longest JSON token that can be
#: cut, except a string, is an escape of two surrogates with 12 characters.
_CUT_CHARACTERS = 12


def read_jsonl(file: io.BufferedReader, name: str) -> Iterator[Row]:
    """Read one object per line; blank lines are skipped.

    Raises:
        DataError: a line isn't UTF-8, isn't JSON, or isn't an object; the message names it.
    """
    for number, line in read_lines(file, name):
        if line.isspace():
            continue
        where = f"{name} line {number}"
        try:
            row = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not valid JSON: {_reason(error)}{_advice(number, line)}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is {type(row).__name__}; each line must be an object{_advice(number, line)}")
        yield row


def _advice(number: int, line: str) -> str:
    if number == 1 and line.startswith("["):
        return ". If the file is one array, use --data-kind json"
    if number == 1 and line.startswith("{"):
        return ". If an object takes several lines, use --data-kind json"
    return "" if line.endswith("\n") else ". The file ends here; it may be cut"


def read_json(file: io.BufferedReader, name: str) -> Iterator[Row]:
    """Read the objects of an array, objects without an array, or the objects of the only list in a single object.

    Only one object at a time is in memory.

    Raises:
        DataError: the file isn't UTF-8, isn't JSON, holds other values, or ends too early.
    """
    stream = _JsonStream(read_chunks(file, name), name)
    start = stream.next_character()
    if start == "[":
        yield from stream.array()
        return
    if start != "{":
        raise DataError(f"{name} {f'begins with {start!r}' if start else 'is empty'}; rows must be JSON objects")
    first = stream.object()
    if stream.next_character():
        yield first
        while stream.next_character():
            yield stream.object()
    else:
        yield from _rows_of_single(first, name)


def _rows_of_single(value: Row, name: str) -> list[Row]:
    """The rows of a file that is one object: those of its only list of objects, or the object itself."""
    lists: dict[str, list[Row]] = {key: items for key, items in value.items() if _is_list_of_objects(items)}
    if not lists or any("role" in items[0] or "from" in items[0] for items in lists.values()):
        return [value]  # no list, or a conversation: one row
    if len(lists) > 1:
        raise DataError(
            f"{name} is one object with several lists of objects ({', '.join(lists)}); write the rows into a file of "
            "their own, or use --data-kind jsonl if the object is a row"
        )
    key, rows = next(iter(lists.items()))
    warnings.warn(f"{name} is one object: its rows are those of the list {key!r}", LogitCacheWarning, stacklevel=2)
    return rows


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


class _JsonStream:
    """Parse JSON values from a text that is read in pieces."""

    def __init__(self, chunks: Iterator[str], name: str) -> None:
        self._chunks = chunks
        self._name = name
        self._text = ""
        self._at = 0
        self._line = 1  # of the first character in _text

    def array(self) -> Iterator[Row]:
        """The objects of the array that begins here. Nothing may follow the array."""
        self._at += 1
        if self.next_character() == "]":
            self._at += 1
        else:
            while True:
                yield self.object()
                mark = self.next_character()
                self._at += 1
                if mark == "]":
                    break
                if mark != ",":
                    raise self._error("the array has no end; the file may be cut" if not mark else f"found {mark!r}")
        if mark := self.next_character():
            raise self._error(f"found {mark!r} after the end of the array")

    def next_character(self) -> str:
        """The next character that isn't white space, without consuming it; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def object(self) -> Row:
        """The object that begins here."""
        start = self.next_character()
        if start != "{":
            raise self._error(f"found {start!r} where an object should begin" if start else "the file ends too early")
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                break
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos + _CUT_CHARACTERS > len(self._text)
                if not cut or not self._read_more():
                    raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._error(_reason(error)) from error
        self._at = end
        row: Row = value
        return row

    def _read_more(self) -> bool:
        """Read as much text as is left, or more, so that a long value isn't parsed from its start too often."""
        self._line = self._line_at(self._at)
        left = self._text[self._at :]
        self._at = 0
        pieces = [left]
        size = 0
        for piece in self._chunks:
            pieces.append(piece)
            size += len(piece)
            if size >= len(left):
                break
        self._text = "".join(pieces)
        return size > 0

    def _line_at(self, at: int) -> int:
        return self._line + self._text.count("\n", 0, at)

    def _error(self, what: str, at: int | None = None) -> DataError:
        line = self._line_at(self._at if at is None else at)
        return DataError(f"{self._name} line {line} can't be read as rows of JSON: {what}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.pos + 1})"
    return str(error).split(";")[0]
