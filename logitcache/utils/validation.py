"""What pydantic found wrong, in one line that people can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


def first_fault(
    error: ValidationError, *, show_value: bool = False, listed_by: str = "", known: Iterable[str] = ()
) -> str:
    """The first fault of a pydantic error in one line: the field, what is wrong, and what is allowed.

    Args:
        show_value: tell the value too. Right for settings that the user gave, not for a stranger's file.
        listed_by: the command that lists the fields, for one that there isn't.
        known: the fields there are, so that the closest can be proposed.
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
        return f"{field} is missing"
    return f"{field} = {fault['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def unknown_setting(name: str, known: Iterable[str], listed_by: str) -> str:
    """What to say of a setting that there isn't: the closest that there is, and the command that lists them."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name} is not a setting; {hint}`{listed_by}` lists them"
