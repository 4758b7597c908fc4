"""A command whose help ends with a list of names, including those from installed packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand


def listing(what: str, names: Callable[[], list[str]]) -> type[TyperCommand]:
    """A class of command. ``names`` is called only when the help is shown."""

    class Listing(TyperCommand):
        def get_help(self, ctx: Any) -> str:
            self.epilog = f"{what}: {', '.join(names())}"
            return super().get_help(ctx)

    return Listing
