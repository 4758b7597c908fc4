"""The `logitcache` command: gathers the commands, and turns errors into one line and an exit status."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Dump a teacher's top-k logits once; distil many students from the cache."""


def run() -> None:
    """Entry point of the console script."""
    app()
