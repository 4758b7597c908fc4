"""What `logitcache dump` prints: the finished cache, the plan of a dry run, and rows as they will be read."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from rich.markup import escape
from rich.table import Table

from logitcache.cache.reader import Cache
from logitcache.data import Tally
from logitcache.dump import DryRun, DumpConfig, PreviewedSequence
from logitcache.dump.to_store import find_dump
from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json
from .estimate import estimate_lines
from .info import recorded_tally
from .text import passage, printable


def print_cache(cache: Cache, place: str) -> None:
    totals = cache.manifest.totals
    per_token = totals.bytes / max(totals.targets, 1)
    console.print(
        f"{place}: {totals.sequences:,} sequences, {totals.tokens:,} tokens, {totals.targets:,} targets in "
        f"{totals.shards:,} shards, {totals.bytes / 2**20:.1f} MiB ({per_token:.1f} bytes per target)",
        soft_wrap=True,
        highlight=False,
    )
    if (tally := recorded_tally(cache.manifest)) is not None:
        print_rows(tally)
    console.print(cache.digest, highlight=False)


def print_rows(tally: Tally) -> None:
    """Counts of the rows that were read, cut and left out."""
    for line in tally.lines():
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def print_reusable(place: str, config: DumpConfig, as_json: bool, speaks: bool) -> bool:
    """Look for the cache that this dump would make, and print its address. False if there is none."""
    with progress_bars(messages, enabled=speaks and not as_json) as report:
        found = find_dump(place, config, report=report)
    if found is None:
        return False
    if not speaks:
        return True
    if as_json:
        print_json({"reuse": found.address, "digest": found.digest})
    else:
        console.print(
            f"this cache exists already: {escape(found.address)}\nuse it, or leave out --reuse to dump it again",
            highlight=False,
            soft_wrap=True,
        )
    return True


def print_plan(plan: DryRun) -> None:
    workers = len(plan.workers)
    table = Table("", "", show_header=False, box=None)
    rows = {
        "sequences": f"{plan.sequences:,}",
        "tokens": f"{plan.tokens:,} (of all tokens in the batches, {plan.padding:.1%} are padding)",
        "targets": f"{plan.targets:,}",
        "shards": f"{plan.shards:,}",
    }
    if plan.measured and plan.bytes is not None and plan.seconds is not None:
        rows["size"] = f"about {plan.bytes / 2**20:,.1f} MiB ({plan.bytes_per_target:.0f} bytes per target)"
        rows["time"] = (
            f"about {timedelta(seconds=round(plan.seconds))} on {workers} worker{'s' if workers > 1 else ''} "
            f"at {plan.tokens_per_second:,.0f} tokens/s each, measured on this machine"
        )
    if plan.estimate is not None:
        rows |= estimate_lines(plan.estimate, "token", plan.tokens)
    if not plan.measured:
        rows["teacher"] = "not loaded, so the size of the cache is not estimated"
    for name, value in rows.items():
        table.add_row(name, value)
    for share in plan.workers if workers > 1 else ():
        last = share.first_shard + share.shards - 1
        own = f"shards {share.first_shard:,} to {last:,}, {share.tokens:,} tokens"
        does = own if share.shards else "no shards of its own; helps other workers"
        table.add_row(f"worker {share.rank}", does)
    console.print(table)
    print_rows(Tally.from_json(plan.tally))


def print_preview(sequences: list[PreviewedSequence], tally: Tally, *, as_json: bool) -> None:
    """Sequences with the tokens that are to be predicted between brackets, and in colour."""
    if as_json:
        print_json({"sequences": [asdict(sequence) for sequence in sequences], "rows": tally.to_json()})
        return
    for sequence in sequences:
        head = f"{sequence.row}: {sequence.tokens:,} tokens, {sequence.targets:,} to be predicted"
        console.print(printable(head), style="bold", highlight=False, markup=False, soft_wrap=True)
        parts = [(text, "green" if predicted else "dim", predicted) for text, predicted in sequence.parts]
        console.print(passage(parts), soft_wrap=True)
        console.print()
    print_rows(tally)
