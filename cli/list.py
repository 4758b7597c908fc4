"""`logitcache list`: the caches under a URL or in a directory."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from logitcache.share import Listed

from .common import console, print_json
from .text import printable


def list_caches(
    place: Annotated[str, typer.Argument(help="A URL such as s3://bucket/caches, or a directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with each manifest.")] = False,
) -> None:
    """List the caches at a place: itself, those of its collection, and those one level below; newest first.

    Example: logitcache list s3://bucket/caches
    """
    from logitcache.share import catalogue

    found = catalogue(place)
    if as_json:
        print_json({"caches": [item.to_json() for item in found]})
        return
    if not found:
        console.print(f"no caches at {escape(place)}", highlight=False)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("cache", "tags", "teacher", "K", "encoding", "tokens", "bytes", "date", "licence"):
        table.add_column(name, justify="right" if name in ("K", "tokens", "bytes") else "left", overflow="fold")
    for item in found:
        table.add_row(*(escape(printable(cell)) for cell in _row(item)))
    console.print(table, highlight=False)


def _row(item: Listed) -> tuple[str, ...]:
    date = item.date.strftime("%Y-%m-%d") if item.date else ""
    if item.manifest is None:
        return (item.address, "", item.fault or "", "", "", "", "", date, "")
    manifest = item.manifest
    # In a collection the digest's beginning is enough to tell caches apart; --json has the whole address.
    url, at, digest = item.address.rpartition("@")
    return (
        f"{url}@{digest[:19]}…" if at and digest.startswith("sha256:") else item.address,
        ", ".join(item.tags),
        manifest.provenance.teacher.name,
        f"{manifest.provenance.top_k:,}",
        manifest.encoding.preset,
        f"{manifest.totals.tokens:,}",
        f"{manifest.totals.bytes:,}",
        date,
        (manifest.card.licence or "–")[:40],
    )
