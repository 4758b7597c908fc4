"""`logitcache push`: copy a cache to a store."""

from __future__ import annotations

from typing import Annotated

import typer

from logitcache.utils.progress import progress_bars

from .common import messages, print_json
from .transfers import print_transfer


def push(
    cache: Annotated[str, typer.Argument(help="The cache: a directory, or a URL.")],
    url: Annotated[
        str,
        typer.Argument(help="The copy: s3://bucket/name for one cache, s3://bucket/caches@TAG for a collection."),
    ],
    collection: Annotated[
        bool, typer.Option("--collection", help="Add it to the collection at the URL without a tag.")
    ] = False,
    move_tag: Annotated[
        bool, typer.Option("--move-tag", help="Move the tag to this cache if it names another.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Replace an interrupted push of another cache to this name.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of transfers at the same time.")] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be copied.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Copy a cache to a store. Only missing shards are copied, and the manifest is copied last.

    Example: logitcache push cache s3://bucket/caches@latest
    """
    from logitcache.share.pushing import push as run

    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        transfer = run(
            cache,
            url,
            collection=collection,
            move_tag=move_tag,
            take_over=take_over,
            workers=workers,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        print_json(transfer.to_json())
    else:
        print_transfer(transfer, "pushed")
