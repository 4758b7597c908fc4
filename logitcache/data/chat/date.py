"""The date that a chat template gets as today.

Some templates write today's date, so the same rows would give other tokens tomorrow. So the date is fixed: the date of
the settings; else the date that the template itself uses when it has no clock; else ``DEFAULT_DATE``.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from jinja2 import nodes

from logitcache.errors import DataError

#: The date for templates without a date of their own. Llama 3's templates use the same.
DEFAULT_DATE = datetime.date(2024, 7, 26)


class FixedDate:
    """The date that a template gets as today.

    Args:
        tree: the parsed template.
        date: YYYY-MM-DD; with None, the template's own date or :data:`DEFAULT_DATE`.

    Attributes:
        is_used: True if the template reads the clock.
        day: the date that it gets.

    Raises:
        DataError: the date isn't of that form.
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
        """Format the date, at midnight, for the template's ``strftime_now``."""
        return datetime.datetime.combine(self.day, datetime.time()).strftime(form)


def _own_days(tree: nodes.Template) -> Iterator[datetime.date]:
    """Constant dates that the template assigns to a variable to which it also assigns today's date."""
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
