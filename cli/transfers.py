"""How `push`, `pull` and `merge` print what they did."""

from __future__ import annotations

from rich.markup import escape

from logitcache.share.pushing import Transfer

from .common import console


def print_transfer(transfer: Transfer, verb: str) -> None:
    """Print two lines: the digest of the cache, and what was copied."""
    console.print(transfer.digest, style="bold", highlight=False, soft_wrap=True)
    kept = transfer.shards - transfer.moved_shards
    moved = f"{transfer.moved_shards:,} of {transfer.shards:,} shards, {transfer.moved_bytes:,} bytes"
    verb = f"would be {verb}" if transfer.dry_run else verb
    there = f"; {kept:,} were there already" if kept else ""
    console.print(f"{verb} to {escape(transfer.target)}: {moved}{there}", highlight=False, soft_wrap=True)
