"""Canonical JSON: equal values give equal bytes, so that a digest can identify a value.

The bytes are those of RFC 8785 (JSON Canonicalization Scheme) and a newline: keys sorted, no spaces, UTF-8, numbers as
ECMAScript prints them. Two programs in any language that write equal values write equal bytes.
"""

from __future__ import annotations

import json
from typing import Any

import rfc8785

#: Larger integers have no exact double, and other languages would print another number.
MAX_INTEGER = 2**53 - 1


def canonical_json(value: Any) -> bytes:
    """The canonical bytes of a JSON value, with a newline at the end.

    Raises:
        ValueError: the value isn't JSON, or holds NaN, infinity, an integer above 2^53 - 1, or half a surrogate pair.
    """
    return rfc8785.dumps(value) + b"\n"


def parse_canonical(raw: bytes) -> Any:
    """Read canonical JSON, and refuse any other form: spaces, repeated keys, another order of keys.

    Raises:
        ValueError: the bytes aren't JSON, or aren't canonical.
    """
    try:
        value = json.loads(raw.decode("utf-8"), parse_int=_integer)
        canonical = canonical_json(value)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if canonical != raw:
        raise ValueError("not in canonical form (RFC 8785 and a newline)")
    return value


def _integer(text: str) -> int | float:
    """A number without a point; above 2^53 - 1 it must have been written from a double."""
    return int(text) if len(text) <= 16 and abs(int(text)) <= MAX_INTEGER else float(text)
