"""`logitcache keygen` and `logitcache sign`: SSH keys, and SSH signatures of a cache's digest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from logitcache.stores.url import public_name

from .common import console, print_json


def keygen(
    out: Annotated[Path, typer.Argument(help="File of the private key. The public key gets the same name and .pub.")],
    comment: Annotated[str, typer.Option(help="Comment in the public key's line, such as the owner's name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a pair of Ed25519 keys for signing caches, in OpenSSH's format.

    Example: logitcache keygen team.key --comment "data team"
    """
    from logitcache.signing.keys import make_key

    key = make_key(out, comment)
    if as_json:
        print_json({"private": str(out), "public": f"{out}.pub", "name": key.name, "fingerprint": key.fingerprint})
    else:
        console.print(f"private key: {escape(str(out))} (keep it secret)", highlight=False, soft_wrap=True)
        console.print(f"public key: {escape(str(out))}.pub, {key.fingerprint}", highlight=False, soft_wrap=True)


def sign(
    cache: Annotated[str, typer.Argument(help="The cache: a directory or a URL.")],
    key: Annotated[Path, typer.Option(help="The private key: an Ed25519 key in OpenSSH's format, without a password.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Sign a cache's digest with an SSH key. The signature is stored beside the cache; `push` and `pull` copy it.

    Example: logitcache sign s3://bucket/caches@latest --key team.key
    """
    from logitcache.share.signing import sign as run

    public = run(cache, key)
    if as_json:
        print_json({"cache": public_name(cache), "key": public.name})
    else:
        console.print(f"signed {escape(public_name(cache))} with {public.fingerprint}", highlight=False, soft_wrap=True)
