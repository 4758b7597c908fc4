"""`logitcache verify`: check every file of a cache."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from logitcache.cache.opening import verify as verify_place
from logitcache.cache.verify import VerifyReport
from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json
from .text import printable


def verify(
    cache: Annotated[str, typer.Argument(help="The cache: a directory, or a URL.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every shard and check what it holds.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of threads that read. Default: one per processor.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every file of a cache and report every fault. The exit status is 1 if there is a fault."""
    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        report = verify_place(cache, deep=deep, workers=workers, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _print(report: VerifyReport) -> None:
    for fault in report.faults:
        console.print(f"[bold red]{fault.kind}[/]  {escape(printable(fault.message))}", highlight=False, soft_wrap=True)
    checked = f"{report.files:,} files, {report.bytes:,} bytes" + (", every shard decoded" if report.deep else "")
    if report.ok:
        console.print(f"[green]no faults[/]  {report.digest}: {checked}", highlight=False, soft_wrap=True)
        return
    count = "1 fault" if len(report.faults) == 1 else f"{len(report.faults):,} faults"
    advice = "Get the named files again, or make the cache again."
    console.print(f"{count} in {checked}. {advice}", highlight=False, soft_wrap=True)
