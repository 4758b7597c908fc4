"""Canonical JSON: one value, one sequence of bytes, so that a digest can name it.

The bytes are those of RFC 8785 (JSON Canonicalization Scheme) and a newline: keys sorted, no spaces, UTF-8, numbers as
ECMAScript prints them. Two programs in any language that write equal values write equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

#: Integers past this have no exact double, and other languages would print another number.
MAX_INTEGER = 2**53 - 1


def canonical_json(value: Any) -> bytes:
    """The canonical bytes of a JSON value, a newline at their end.

    Raises:
        ValueError: the value isn't JSON, or holds NaN, an infinity, an integer past 2^53 - 1, or half a surrogate pair.
    """
    return ("".join(_parts(value)) + "\n").encode("utf-8")


def parse_canonical(raw: bytes) -> Any:
    """Read canonical JSON, and refuse any other spelling of it: spaces, repeated keys, another order.

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
    """A number without a point: past 2^53 - 1 only a double can have been meant."""
    return int(text) if len(text) <= 16 and abs(int(text)) <= MAX_INTEGER else float(text)


def _parts(value: Any) -> Iterator[str]:
    if value is None or value is True or value is False:
        yield {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str):
        yield json.dumps(value, ensure_ascii=False)
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError(f"integer {value} is past 2^53 - 1")
        yield str(value)
    elif isinstance(value, float):
        yield format_number(value)
    elif isinstance(value, (list, tuple)):
        yield "["
        for index, item in enumerate(value):
            yield "," if index else ""
            yield from _parts(item)
        yield "]"
    elif isinstance(value, dict):
        yield from _object_parts(value)
    else:
        raise ValueError(f"{type(value).__name__} is not a JSON value")


def _object_parts(value: dict[Any, Any]) -> Iterator[str]:
    if not all(isinstance(key, str) for key in value):
        raise ValueError("keys must be strings")
    yield "{"
    # RFC 8785 sorts keys by their UTF-16 code units.
    for index, key in enumerate(sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))):
        yield "," if index else ""
        yield json.dumps(key, ensure_ascii=False)
        yield ":"
        yield from _parts(value[key])
    yield "}"


def format_number(value: float) -> str:
    """A double as ECMAScript's ``Number::toString`` prints it: the shortest digits that read back the same."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a JSON number")
    if value == 0:
        return "0"
    sign, digit_tuple, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    digits = "".join(map(str, digit_tuple))
    point = len(digits) + exponent  # digits stand after "0." shifted by this many places
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        text = digits + "0" * (point - len(digits))
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        text = f"{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return ("-" if sign else "") + text
