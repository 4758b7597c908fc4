"""Exceptions of other libraries in one line."""

from __future__ import annotations

import pytest

from logitcache.utils.reasons import MAX_LENGTH, reason


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad value"), "bad value"),
        (ValueError("\n  bad value  \nTraceback, and more"), "bad value"),
        (RuntimeError("Error(s) in loading:\n\n\tsize mismatch\n\tanother"), "Error(s) in loading: size mismatch"),
        (RuntimeError("ends with a colon:"), "ends with a colon:"),
        (EOFError(), "EOFError"),
        (EOFError(" \n "), "EOFError"),
    ],
)
def test_one_line(error: Exception, expected: str) -> None:
    assert reason(error) == expected


def test_a_bounded_length() -> None:
    assert reason(ValueError("x" * 10_000)) == "x" * MAX_LENGTH
