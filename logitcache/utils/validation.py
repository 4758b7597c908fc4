"""Turn an error of pydantic into one line that says what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


def first_fault(
    error: ValidationError, *, show_value: bool = False, listed_by: str = "", known: Iterable[str] = ()
) -> str:
    """The first fault of a pydantic error in one line: the field, what is wrong, and what is allowed.

    Args:
        show_value: also show the value. For settings that the user gave, not for a file from elsewhere.
        listed_by: the command that lists the fields; the message for an unknown field names it.
        known: all field names; the message for an unknown field suggests the closest one.
    """
    fault = error.errors(include_url=False, include_input=show_value)[0]
    field = ".".join(map(str, fault["loc"]))[:200]
    message = fault["msg"].removeprefix("Value error, ")[:300]
    if not field:
        return message
    if not show_value:
        return f"{field}: {message}"
    if fault["type"] == "extra_forbidden":
        return unknown_setting(field, known, listed_by)
    if fault["type"] == "missing":
        return f"the setting {field} is missing (on the command line: --{field.replace('_', '-')})"
    return f"{field} = {fault['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def unknown_setting(name: str, known: Iterable[str], listed_by: str) -> str:
    """The message for an unknown setting: the closest known one, and the command that lists all."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name} is not a setting; {hint}`{listed_by}` lists them"
