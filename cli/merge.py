"""`logitcache merge`: join caches into one."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json
from .transfers import print_transfer


def merge(
    caches: Annotated[list[str], typer.Argument(help="The caches, in the order their sequences will stand.")],
    out: Annotated[str, typer.Option(help="Where to: a directory, s3://bucket/name or s3://bucket/caches@TAG.")],
    duplicates: Annotated[
        Literal["refuse", "drop", "keep"],
        typer.Option(help="Sequences that occur twice: refuse to go on, drop the later ones, or keep all uncompared."),
    ] = "refuse",
    move_tag: Annotated[
        bool, typer.Option("--move-tag", help="Let the tag stand for the new cache from now on.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Transfers at a time.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Join caches of one teacher, tokenizer, K and encoding. Shards stay the same files, and don't move where they are.

    Example: logitcache merge s3://bucket/caches@news s3://bucket/caches@code --out s3://bucket/caches@both
    """
    from logitcache.share.merging import merge as run

    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        merged = run(caches, out, duplicates=duplicates, move_tag=move_tag, workers=workers, progress=progress)
    if as_json:
        print_json(merged.to_json())
        return
    print_transfer(merged.transfer, "merged")
    looked = "nobody looked for duplicates" if merged.duplicates is None else f"{merged.duplicates:,} duplicates"
    console.print(f"{merged.sequences:,} sequences; {looked}", highlight=False)
