"""`logitcache import` and `logitcache export`: from and to files of other programs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.markup import escape

from logitcache.cache.opening import open_place
from logitcache.format.encoding import Encoding
from logitcache.format.manifest import Card
from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json


def import_files(
    files: Annotated[list[str], typer.Argument(help="JSON lines; for distillkit, Parquet files or their directory.")],
    out: Annotated[str, typer.Option(help="Directory of the cache to make.")],
    kind: Annotated[Literal["openai", "vllm", "distillkit"], typer.Option(help="Program that wrote the files.")],
    tokenizer: Annotated[str, typer.Option(help="The teacher's tokenizer: a directory or a hub id.")],
    teacher: Annotated[str, typer.Option(help="Name of the teacher in the manifest.")],
    top_k: Annotated[int, typer.Option(min=1, help="Entries kept for each position.")],
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Length of the teacher's logit vector, if not the tokenizer's.")
    ] = None,
    preset: Annotated[
        Literal["exact", "half", "compact", "tiny"], typer.Option(help="Encoding of log-probs.")
    ] = "compact",
    shard_format: Annotated[Literal["zarr", "arrow"], typer.Option("--format", help="Format of the shards.")] = "zarr",
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which a shard ends.")] = 65_536,
    licence: Annotated[str | None, typer.Option(help="Licence of the cache, for its card.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a cache from log-probs that another program wrote: an OpenAI-style API, vLLM or DistillKit.

    Example: logitcache import answers.jsonl --kind openai --tokenizer teacher --teacher gpt --top-k 20 --out cache
    """
    from logitcache.exchange.importing import import_logprobs

    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        made = import_logprobs(
            files,
            out,
            kind=kind,
            tokenizer=tokenizer,
            teacher=teacher,
            top_k=top_k,
            vocab_size=vocab_size,
            encoding=Encoding(preset=preset),
            shard_format=shard_format,
            shard_tokens=shard_tokens,
            card=Card(licence=licence),
            progress=progress,
        )
    if as_json:
        print_json(made.to_json())
        return
    totals = made.cache.manifest.totals
    console.print(made.cache.digest, style="bold", highlight=False, soft_wrap=True)
    console.print(
        f"{escape(out)}: {made.rows:,} rows, {totals.tokens:,} tokens, {totals.targets:,} targets; left out: "
        f"{made.skipped_positions:,} positions with fewer than {top_k:,} usable entries, {made.skipped_rows:,} rows",
        highlight=False,
        soft_wrap=True,
    )


def export_cache(
    cache: Annotated[str, typer.Argument(help="The cache: a directory or a URL.")],
    out: Annotated[str, typer.Argument(help="The Parquet file to write.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a cache as one plain Parquet file. Each row is a sequence with its tokens and targets.

    Example: logitcache export cache cache.parquet
    """
    from logitcache.exchange.exporting import export_parquet

    opened = open_place(cache)
    with progress_bars(messages, enabled=messages.is_terminal) as progress:
        size = export_parquet(opened, out, progress=progress)
    if as_json:
        print_json({"path": out, "bytes": size, "sequences": len(opened), "digest": opened.digest})
    else:
        console.print(f"{escape(out)}: {len(opened):,} sequences, {size:,} bytes", highlight=False, soft_wrap=True)
