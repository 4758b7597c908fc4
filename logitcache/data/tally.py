"""What happened to the rows of a corpus: how many were read, left out or cut, and which was the first of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

#: Reasons can hold values of a row. So many are kept apart, the rest are counted together.
_MOST_REASONS = 40
_OTHER = "other reasons"
_GROUPS = ("left_out", "cut", "notes", "told")
#: Why a row without content is left out.
EMPTY = "empty"


@dataclass
class Happening:
    """One kind of thing that happened to rows.

    Attributes:
        rows: how many rows.
        first: names the first of them.
        tokens: how many of their tokens were left out.
    """

    rows: int
    first: str
    tokens: int = 0


@dataclass
class Tally:
    """Counts over a corpus, by what happened and why.

    Attributes:
        read: rows read.
        left_out: rows that gave no sequence, by reason.
        cut: rows longer than the limit, by what was done.
        notes: rows that were used, but not as they stand: what a person should know before the dump begins.
        told: how rows were read, where that needed a choice.
    """

    read: int = 0
    left_out: dict[str, Happening] = field(default_factory=dict)
    cut: dict[str, Happening] = field(default_factory=dict)
    notes: dict[str, Happening] = field(default_factory=dict)
    told: dict[str, Happening] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str) -> None:
        """Count a row that gives no sequence."""
        _count(self.left_out, reason, where)

    def cut_row(self, what: str, where: str, tokens: int = 0) -> None:
        """Count a row that is longer than the limit; ``tokens`` of it are left out."""
        _count(self.cut, what, where, tokens)

    def note(self, what: str, where: str) -> None:
        """Count a row that is used, but not as it stands."""
        _count(self.notes, what, where)

    def tell(self, what: str, where: str) -> None:
        """Count a row that was read in a way that is worth a line."""
        _count(self.told, what, where)

    @property
    def left_out_rows(self) -> int:
        return sum(happening.rows for happening in self.left_out.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values; what didn't happen is absent, and files go by their last name, so that no disk is described."""
        groups = {name: getattr(self, name) for name in _GROUPS}
        shown = {
            name: {reason: _plain(happening) for reason, happening in group.items()} for name, group in groups.items()
        }
        return {"read": self.read} | {name: group for name, group in shown.items() if group}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """Back from :meth:`to_json`."""
        groups = {
            name: {reason: Happening(**happening) for reason, happening in value.get(name, {}).items()}
            for name in _GROUPS
        }
        return cls(value["read"], **groups)

    def lines(self) -> Iterator[str]:
        """What to tell a person: one line of counts, and one for each thing that happened."""
        cut = sum(happening.rows for happening in self.cut.values())
        yield f"rows: {self.read:,} read, {self.left_out_rows:,} left out, {cut:,} longer than the limit"
        for title, group in (
            ("left out", self.left_out),
            ("too long", self.cut),
            ("note", self.notes),
            ("read", self.told),
        ):
            for reason, happening in group.items():
                yield f"{title}: {reason} ({_amount(happening)}; the first is {happening.first})"


def _count(group: dict[str, Happening], reason: str, where: str, tokens: int = 0) -> None:
    if reason not in group and len(group) >= _MOST_REASONS:
        reason = _OTHER
    known = group.setdefault(reason, Happening(0, where))
    known.rows += 1
    known.tokens += tokens


def _plain(happening: Happening) -> dict[str, Any]:
    plain = {name: value for name, value in asdict(happening).items() if name != "tokens" or value}
    return plain | {"first": PurePath(happening.first).name}


def _amount(happening: Happening) -> str:
    rows = f"{happening.rows:,} row{'s' if happening.rows > 1 else ''}"
    return f"{rows}, {happening.tokens:,} tokens left out" if happening.tokens else rows
