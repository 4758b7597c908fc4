"""`logitcache pull`: copy a cache, or a part of one, into a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from logitcache.utils.progress import progress_bars

from .common import messages, print_json
from .transfers import print_transfer


def pull(
    cache: Annotated[str, typer.Argument(help="The cache: a URL (with @TAG or @sha256:… in a collection).")],
    out: Annotated[str, typer.Argument(help="Directory for the copy: new, or left by an interrupted pull.")],
    shards: Annotated[str | None, typer.Option(help="Only these shards, such as 0:4,7.")] = None,
    sequences: Annotated[
        str | None, typer.Option(help="Only these sequences: 0:1000, or 1000 for the first 1000.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Only the first sequences, with at most this many tokens together.")
    ] = None,
    trusted_keys: Annotated[
        Path | None, typer.Option(help="A file of public keys; one of them must have signed the cache.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of transfers at the same time.")] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be copied.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Copy a cache, or a part of one, into a directory. Each file is checked. A second run fetches missing files.

    Example: logitcache pull s3://bucket/caches@latest cache --tokens 100000
    """
    from logitcache.cache.selection import Selection, parse_range, parse_spans
    from logitcache.share.pulling import pull as run

    selection = Selection(
        shards=None if shards is None else parse_spans(shards, "--shards"),
        sequences=None if sequences is None else parse_range(sequences, "--sequences"),
        tokens=tokens,
    )
    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        transfer = run(
            cache, out, selection, trusted_keys=trusted_keys, workers=workers, dry_run=dry_run, progress=progress
        )
    if as_json:
        print_json(transfer.to_json())
    else:
        print_transfer(transfer, "pulled")
