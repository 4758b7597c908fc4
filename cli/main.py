"""The `logitcache` command: collects the commands, and turns errors into one line and an exit status."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import logitcache
from logitcache import engines, losses
from logitcache.errors import LogitCacheError
from logitcache.utils.parallel import THREAD_PREFIX

from .common import console, messages, warnings_in_a_line
from .convert import convert
from .diff import diff
from .dump import dump
from .eval import evaluate
from .exchange import export_cache, import_files
from .info import info
from .list import list_caches
from .listing import listing
from .merge import merge
from .peek import peek
from .pull import pull
from .push import push
from .sign import keygen, sign
from .student import student
from .tag import tag
from .text import printable
from .train import train
from .verify import verify

INTERRUPTED = 130  # the shell's number for Ctrl-C

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
app.command("dump", cls=listing("Engines", engines.names))(dump)
app.command("student")(student)
app.command("train", cls=listing("Losses", losses.names))(train)
app.command("eval")(evaluate)
app.command("info")(info)
app.command("peek")(peek)
app.command("verify")(verify)
app.command("convert")(convert)
app.command("push")(push)
app.command("pull")(pull)
app.command("list")(list_caches)
app.command("tag")(tag)
app.command("merge")(merge)
app.command("diff")(diff)
app.command("sign")(sign)
app.command("keygen")(keygen)
app.command("import")(import_files)
app.command("export")(export_cache)


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
        bool, typer.Option("--debug", help="Show the traceback of an error. May be anywhere on the command line.")
    ] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Use only local copies of caches. May be anywhere on the command line."),
    ] = False,
    trusted_keys: Annotated[
        Path | None,
        typer.Option(help="Open only caches that a key in this file signed. May be anywhere on the command line."),
    ] = None,
) -> None:
    """Dump a teacher's top-k logits once; distil many students from the cache."""
    if trusted_keys is not None:
        os.environ["LOGITCACHE_TRUSTED_KEYS"] = str(trusted_keys)
    if named := os.environ.get("LOGITCACHE_TRUSTED_KEYS"):
        from logitcache.signing.keys import read_trusted

        # A missing file must be an error in a command that opens no cache as well.
        read_trusted(Path(named))


def run() -> None:
    """Entry point of the console script. Exit status: 0 done, 1 an error, 2 wrong usage, 130 stopped by Ctrl-C."""
    arguments = _to_the_front([argument for argument in sys.argv[1:] if argument not in ("--debug", "--offline")])
    if "--offline" in sys.argv[1:]:
        os.environ["LOGITCACHE_OFFLINE"] = "1"
    try:
        with warnings_in_a_line():
            app(args=arguments)
    except SystemExit as stopped:
        if stopped.code == INTERRUPTED:
            _leave(arguments)
        raise
    except (LogitCacheError, OSError) as error:
        if "--debug" in sys.argv[1:]:
            raise
        messages.print(f"[bold red]error:[/] {escape(printable(str(error)))}", soft_wrap=True, highlight=False)
        raise SystemExit(1) from error


def _leave(arguments: list[str]) -> None:
    """End at once after Ctrl-C, even if the thread of a transfer still waits for an answer."""
    resume = " with --resume" if "train" in arguments[:1] and "--resume" not in arguments else ""
    messages.print(f"[bold]interrupted[/]: run the same command again{resume} to go on")
    sys.stdout.flush()
    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        os._exit(INTERRUPTED)


def _to_the_front(arguments: list[str], name: str = "--trusted-keys") -> list[str]:
    """Move a flag that every command takes, and its value, before the command, where typer expects it."""
    for place, argument in enumerate(arguments):
        if (argument == name and place + 1 < len(arguments)) or argument.startswith(f"{name}="):
            length = 2 if argument == name else 1
            found, rest = arguments[place : place + length], arguments[:place] + arguments[place + length :]
            return found + rest
    return arguments
