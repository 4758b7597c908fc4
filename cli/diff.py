"""`logitcache diff`: how two caches differ."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from logitcache.cache.compare import Difference
from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json
from .text import printable


def diff(
    first: Annotated[str, typer.Argument(help="A cache: a directory or a URL.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    values: Annotated[
        bool, typer.Option("--values", help="Also compare the targets of sequences that are in both.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how two caches differ: in manifests, shards and sequences, and with --values in their targets.

    Example: logitcache diff cache s3://bucket/caches@latest --values
    """
    from logitcache.cache.compare import diff as run

    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        found = run(first, second, values=values, progress=progress)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


def _print(found: Difference) -> None:
    if found.same:
        console.print("the same cache", style="green")
        return
    if found.fields:
        table = Table("field", "first", "second", box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name, pair in found.fields.items():
            table.add_row(name, *(_shown(value) for value in pair))
        console.print(table, highlight=False)
    for what, counts in (("shards", found.shards), ("sequences", found.sequences)):
        line = ", ".join(f"{count:,} {name.replace('_', ' in the ')}" for name, count in counts.items())
        console.print(f"{what}: {line}", highlight=False)
    if found.values is not None:
        console.print(_values(found.values), highlight=False)


def _values(values: Any) -> str:
    if not values.sequences:
        return "targets: no common sequence is in different shards"
    line = f"targets: {values.differing:,} of {values.sequences:,} common sequences in different shards differ"
    if not values.targets:
        return line
    gaps = (
        ""
        if values.mean is None
        else f", log-probs {values.mean:.4g} nat apart on average, {values.largest:.4g} at most"
    )
    first = f"same first token at {values.top1:.1%} of {values.targets:,} positions"
    return f"{line}; {first}, lists overlap {values.overlap:.1%}{gaps}"


def _shown(value: Any) -> str:
    return "–" if value is None else escape(printable(str(value)[:60]))
