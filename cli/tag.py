"""`logitcache tag`: let a name stand for a cache of a collection."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from .common import console, print_json


def tag(
    cache: Annotated[str, typer.Argument(help="The cache: s3://bucket/caches@sha256:… or @ another of its tags.")],
    name: Annotated[str, typer.Argument(help="The tag, such as latest.")],
    move_tag: Annotated[bool, typer.Option("--move-tag", help="The tag may stand for another cache now.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let a tag stand for a cache of a collection. Digests never change; tags may move.

    Example: logitcache tag s3://bucket/caches@draft latest --move-tag
    """
    from logitcache.share.pushing import tag as run

    digest = run(cache, name, move=move_tag)
    if as_json:
        print_json({"tag": name, "digest": digest})
    else:
        console.print(f"{escape(name)} stands for {digest}", highlight=False, soft_wrap=True)
