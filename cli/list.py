"""`logitcache list`: the caches under a URL or in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from logitcache.cache.catalogue import Listed
from logitcache.stores.url import public_name

from .common import console, print_json
from .text import printable

_COLUMNS = ("cache", "tags", "teacher", "K", "encoding", "tokens", "bytes", "date", "licence")
_LEFT_OUT_IF_NARROW = ("K", "encoding", "licence")
_ALL_FIT, _PIPE_WIDTH = 120, 250


def list_caches(
    place: Annotated[str, typer.Argument(help="A URL such as s3://bucket/caches, or a directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with each manifest.")] = False,
) -> None:
    """List the caches at a URL or in a directory: itself, its collection, and one level below; newest first.

    Example: logitcache list s3://bucket/caches
    """
    from logitcache.cache.catalogue import catalogue

    found = catalogue(place)
    if as_json:
        print_json({"caches": [item.to_json() for item in found]})
        return
    place = public_name(place)
    if not found:
        console.print(f"no caches at {escape(place)}", highlight=False)
        return
    console.print(escape(place), style="bold", highlight=False, soft_wrap=True)
    # A file or a pipe gets all columns; a narrow terminal doesn't get those that `info` shows as well.
    wide = console if console.is_terminal else Console(width=_PIPE_WIDTH)
    left_out = () if wide.width >= _ALL_FIT else _LEFT_OUT_IF_NARROW
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown = [index for index, name in enumerate(_COLUMNS) if name not in left_out]
    for name in (_COLUMNS[index] for index in shown):
        right = name in ("K", "tokens", "bytes")
        narrow = name not in ("tags", "teacher", "licence")  # these fold if there is too little space
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=narrow)
    for item in found:
        cells = _row(item, place)
        table.add_row(*(escape(printable(cells[index])) for index in shown))
    wide.print(table, highlight=False)


def _row(item: Listed, place: str) -> tuple[str, ...]:
    date = item.date.strftime("%Y-%m-%d") if item.date else ""
    # Addresses begin with the place, and the first digits of a digest are enough here; --json has all of both.
    # (A directory that is a collection has addresses that begin with its URL.)
    name = item.address.removeprefix(place.rstrip("/")).removeprefix(Path(place).absolute().as_uri())
    name = name.lstrip("/") or "."
    name = f"{name[:20]}…" if name.startswith("@sha256:") else name
    if item.manifest is None:
        return (name, "", item.fault or "", "", "", "", "", date, "")
    manifest = item.manifest
    return (
        name,
        ", ".join(item.tags),
        manifest.provenance.teacher.name,
        f"{manifest.provenance.top_k:,}",
        manifest.encoding.preset,
        f"{manifest.totals.tokens:,}",
        f"{manifest.totals.bytes:,}",
        date,
        (manifest.card.licence or "–")[:40],
    )
