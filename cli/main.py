"""The `logitcache` command: gathers the commands, and turns errors into one line and an exit status."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

import logitcache
from logitcache.errors import LogitCacheError

from .common import console, messages
from .dump import dump
from .eval import evaluate
from .info import info
from .peek import peek
from .student import student
from .train import train
from .verify import verify

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
app.command("dump")(dump)
app.command("student")(student)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("info")(info)
app.command("peek")(peek)
app.command("verify")(verify)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"logitcache {logitcache.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Taken anywhere on the line.")
    ] = False,
) -> None:
    """Dump a teacher's top-k logits once; distil many students from the cache."""


def run() -> None:
    """Entry point of the console script. Exit status: 0 done, 1 an error that is explained, 2 wrong usage."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments)
    except (LogitCacheError, OSError) as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        messages.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(1) from error
