"""`logitcache keygen` and `logitcache sign`: SSH keys, and SSH signatures of a cache's digest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from logitcache.stores.url import public_name

from .common import console, print_json


def keygen(
    out: Annotated[
        Path, typer.Argument(help="Where the private key goes; the public one goes to the same name + .pub.")
    ],
    comment: Annotated[str, typer.Option(help="Whose key it is; stands in the public key's line.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a pair of Ed25519 keys for signing caches, in OpenSSH's form.

    Example: logitcache keygen team.key --comment "data team"
    """
    from logitcache.signing.keys import make_key

    key = make_key(out, comment)
    if as_json:
        print_json({"private": str(out), "public": f"{out}.pub", "name": key.name, "fingerprint": key.fingerprint})
    else:
        console.print(f"private key: {escape(str(out))} (keep it to yourself)", highlight=False, soft_wrap=True)
        console.print(f"public key: {escape(str(out))}.pub, {key.fingerprint}", highlight=False, soft_wrap=True)


def sign(
    cache: Annotated[str, typer.Argument(help="The cache: a directory or a URL.")],
    key: Annotated[Path, typer.Option(help="The private key: an Ed25519 key in OpenSSH's form, without a password.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Sign a cache's digest with an SSH key, and put the signature beside the cache. `push` and `pull` carry it along.

    Example: logitcache sign s3://bucket/caches@latest --key team.key
    """
    from logitcache.share.signing import sign as run

    public = run(cache, key)
    if as_json:
        print_json({"cache": public_name(cache), "key": public.name})
    else:
        console.print(f"signed {escape(public_name(cache))} with {public.fingerprint}", highlight=False, soft_wrap=True)
