"""`logitcache tag`: give a tag to a cache of a collection."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from .common import console, print_json


def tag(
    cache: Annotated[str, typer.Argument(help="The cache: s3://bucket/caches@sha256:… or s3://bucket/caches@TAG.")],
    name: Annotated[str, typer.Argument(help="The tag, such as latest.")],
    move_tag: Annotated[bool, typer.Option("--move-tag", help="Move the tag if it names another cache.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Give a tag to a cache of a collection. A digest always names the same cache; a tag can be moved.

    Example: logitcache tag s3://bucket/caches@draft latest --move-tag
    """
    from logitcache.share.pushing import tag as run

    digest = run(cache, name, move=move_tag)
    if as_json:
        print_json({"tag": name, "digest": digest})
    else:
        console.print(f"{escape(name)} now names {digest}", highlight=False, soft_wrap=True)
