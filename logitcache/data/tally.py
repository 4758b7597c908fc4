"""Count the rows of a corpus: how many were read, left out or cut, and the first row of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

#: Reasons may contain values of a row. This many are counted separately, the rest together.
_MOST_REASONS = 40
_OTHER = "other reasons"
_GROUPS = ("left_out", "cut", "notes", "told")
#: The reason why a row without content is left out.
EMPTY = "empty"


@dataclass
class RowEvent:
    """Something that happened to one or more rows.

    Attributes:
        rows: how many rows.
        first: name of the first one.
        tokens: how many tokens of these rows were left out.
    """

    rows: int
    first: str
    tokens: int = 0


@dataclass
class Tally:
    """Counts of rows of a corpus, by what happened and why.

    Attributes:
        read: rows read.
        left_out: rows that gave no sequence, by reason.
        cut: rows longer than the limit, by what was done.
        notes: rows that were used, but with a change that the user should know before the dump begins.
        told: how rows were read, if there was a choice.
    """

    read: int = 0
    left_out: dict[str, RowEvent] = field(default_factory=dict)
    cut: dict[str, RowEvent] = field(default_factory=dict)
    notes: dict[str, RowEvent] = field(default_factory=dict)
    told: dict[str, RowEvent] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str) -> None:
        """Count a row that gives no sequence."""
        _count(self.left_out, reason, where)

    def cut_row(self, what: str, where: str, tokens: int = 0) -> None:
        """Count a row that is longer than the limit, and the number of its tokens that are left out."""
        _count(self.cut, what, where, tokens)

    def note(self, what: str, where: str) -> None:
        """Count a row that is used with a change."""
        _count(self.notes, what, where)

    def note_choice(self, what: str, where: str) -> None:
        """Count a row that could be read in several ways, and how it was read."""
        _count(self.told, what, where)

    @property
    def left_out_rows(self) -> int:
        """Number of rows that gave no sequence."""
        return sum(event.rows for event in self.left_out.values())

    def to_json(self) -> dict[str, Any]:
        """As plain values. Empty groups are absent, and a file is named without its directory, which is private."""
        groups = {name: getattr(self, name) for name in _GROUPS}
        shown = {name: {reason: _plain(event) for reason, event in group.items()} for name, group in groups.items()}
        return {"read": self.read} | {name: group for name, group in shown.items() if group}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """The tally that :meth:`to_json` wrote."""
        groups = {
            name: {reason: RowEvent(**event) for reason, event in value.get(name, {}).items()} for name in _GROUPS
        }
        return cls(value["read"], **groups)

    def lines(self) -> Iterator[str]:
        """The tally as text: a line of counts, then a line for each event."""
        cut = sum(event.rows for event in self.cut.values())
        yield f"rows: {self.read:,} read, {self.left_out_rows:,} left out, {cut:,} longer than the limit"
        for title, group in (
            ("left out", self.left_out),
            ("too long", self.cut),
            ("note", self.notes),
            ("read", self.told),
        ):
            for reason, event in group.items():
                yield f"{title}: {reason} ({_amount(event)}; the first is {event.first})"


def _count(group: dict[str, RowEvent], reason: str, where: str, tokens: int = 0) -> None:
    if reason not in group and len(group) >= _MOST_REASONS:
        reason = _OTHER
    known = group.setdefault(reason, RowEvent(0, where))
    known.rows += 1
    known.tokens += tokens


def _plain(event: RowEvent) -> dict[str, Any]:
    plain = {name: value for name, value in asdict(event).items() if name != "tokens" or value}
    return plain | {"first": PurePath(event.first).name}


def _amount(event: RowEvent) -> str:
    rows = f"{event.rows:,} row{'s' if event.rows > 1 else ''}"
    return f"{rows}, {event.tokens:,} tokens left out" if event.tokens else rows
