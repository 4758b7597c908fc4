"""`logitcache convert`: another shard format, another encoding, or fewer entries per position."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from logitcache.cache.convert import convert_cache
from logitcache.cache.opening import open_place
from logitcache.format.encoding import Encoding, Preset
from logitcache.format.formats import ShardFormatName
from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json


def convert(
    cache: Annotated[str, typer.Argument(help="The cache: a directory, or a URL.")],
    out: Annotated[str, typer.Option(help="Directory of the new cache; must not exist.")],
    shard_format: Annotated[ShardFormatName | None, typer.Option("--format", help="Format of the shards.")] = None,
    preset: Annotated[Preset | None, typer.Option(help="How log-probs are stored.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Largest error of a stored log-prob, in nats, for compact and tiny.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Entries to keep at each position.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of shards to convert at the same time.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a new cache from a cache: in another format or encoding, or with fewer entries per position.

    Example: logitcache convert speech.cache --out small.cache --preset tiny --top-k 32
    """
    source = open_place(cache)
    encoding = None
    if preset is not None or max_error is not None:
        encoding = Encoding.checked(preset or source.manifest.encoding.preset, max_error)
    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        made = convert_cache(
            source, out, shard_format=shard_format, encoding=encoding, top_k=top_k, workers=workers, progress=progress
        )
    if as_json:
        print_json(made.to_json())
        return
    change = made.bytes_after / max(made.bytes_before, 1)
    console.print(
        f"{escape(made.path)}  {made.digest}\n"
        f"{made.bytes_after:,} bytes of shards, {change:.0%} of the old size; "
        f"log-probs within {made.max_error:g} nats of the teacher's",
        highlight=False,
        soft_wrap=True,
    )
