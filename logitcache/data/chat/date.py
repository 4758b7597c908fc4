"""The day that a chat template is told is today.

Some templates write today's date. The same rows would give other tokens tomorrow, so the date is fixed: to the day
that is asked for, else to the day that the template itself names for want of a clock, else to one day for all.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from jinja2 import nodes

from logitcache.errors import DataError

#: The day for templates that name none themselves; Llama 3's templates name the same.
DEFAULT_DATE = datetime.date(2024, 7, 26)


class FixedDate:
    """Today, as a template sees it.

    Args:
        tree: the template.
        date: YYYY-MM-DD; None takes the template's own day or :data:`DEFAULT_DATE`.

    Attributes:
        is_used: the template reads the clock.
        day: the day it is given.

    Raises:
        DataError: not a date of that form.
    """

    def __init__(self, tree: nodes.Template, date: str | None) -> None:
        self.is_used = any(name.name == "strftime_now" and name.ctx == "load" for name in tree.find_all(nodes.Name))
        if date is not None:
            try:
                self.day = datetime.datetime.strptime(str(date), "%Y-%m-%d").date()
            except ValueError as error:
                raise DataError(f"the chat template's date must be YYYY-MM-DD, not {date!r}") from error
        else:
            self.day = next(_own_days(tree), DEFAULT_DATE)

    def strftime(self, form: str) -> str:
        """The day at midnight in this form, for the template's ``strftime_now``."""
        return datetime.datetime.combine(self.day, datetime.time()).strftime(form)


def _own_days(tree: nodes.Template) -> Iterator[datetime.date]:
    """Days that the template gives to a variable to which it would else give today."""
    assigned = [(each.target, each.node) for each in tree.find_all(nodes.Assign)]
    for variable, call in assigned:
        for other, constant in assigned:
            if isinstance(constant, nodes.Const) and variable == other:
                for form in _clock_forms(call):
                    try:
                        yield datetime.datetime.strptime(constant.value, form).date()
                    except (TypeError, ValueError):
                        continue


def _clock_forms(call: nodes.Node) -> Iterator[str]:
    if isinstance(call, nodes.Call) and isinstance(call.node, nodes.Name) and call.node.name == "strftime_now":
        yield from (form.value for form in call.args if isinstance(form, nodes.Const) and isinstance(form.value, str))
