"""`logitcache merge`: join caches into one."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json
from .transfers import print_transfer


def merge(
    caches: Annotated[list[str], typer.Argument(help="The caches, in the order of their sequences in the new cache.")],
    out: Annotated[str, typer.Option(help="The new cache: a directory, s3://bucket/name or s3://bucket/caches@TAG.")],
    duplicates: Annotated[
        Literal["refuse", "drop", "keep"],
        typer.Option(help="Sequences that occur twice: stop (refuse), drop the later ones, or keep all unchecked."),
    ] = "refuse",
    move_tag: Annotated[
        bool, typer.Option("--move-tag", help="Move the tag to the new cache if it names another one.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of transfers at the same time.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Join caches of one teacher, tokenizer, K and encoding. In one collection no shard is copied.

    Example: logitcache merge s3://bucket/caches@news s3://bucket/caches@code --out s3://bucket/caches@both
    """
    from logitcache.share.merging import merge as run

    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        merged = run(caches, out, duplicates=duplicates, move_tag=move_tag, workers=workers, progress=progress)
    if as_json:
        print_json(merged.to_json())
        return
    print_transfer(merged.transfer, "merged")
    looked = "duplicates not checked" if merged.duplicates is None else f"{merged.duplicates:,} duplicates"
    console.print(f"{merged.sequences:,} sequences; {looked}", highlight=False)
