"""`logitcache dump`: stage 1."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from logitcache.cache import Cache
from logitcache.dump import DryRun, DumpConfig, config_path, make_config, plan_dump
from logitcache.dump import dump as run_dump
from logitcache.errors import ConfigError
from logitcache.progress import progress_bars
from logitcache.share.dumping import dump_staged, find_dump, send_staged, staging_of
from logitcache.url import as_url

from .common import console, messages, print_json, read_config


def dump(
    teacher: Annotated[str | None, typer.Option(help="Model directory, hub id, or .gguf file.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="File, glob, or saved data set. May be repeated.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Directory of the cache to make, or a URL as `logitcache push` takes it.")
    ] = None,
    reuse: Annotated[
        str | None, typer.Option(help="Catalogue to look in first: a URL or directory. If it has the cache, say where.")
    ] = None,
    top_k: Annotated[
        str | None, typer.Option(help="Entries kept for each position, or all.", show_default="64")
    ] = None,
    tail_samples: Annotated[
        int | None,
        typer.Option(help="How many of the entries to draw from all that the top leaves out.", show_default="0"),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Student whose best ids are kept, too: a model directory or hub id.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="How many of the entries those are.", show_default="16 with a reference")
    ] = None,
    every: Annotated[
        int | None, typer.Option(help="Keep the prediction at every so many positions.", show_default="1")
    ] = None,
    shard_format: Annotated[str | None, typer.Option("--format", help="zarr or arrow.", show_default="zarr")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Encoding: exact, half, compact or tiny.", show_default="compact")
    ] = None,
    max_error: Annotated[float | None, typer.Option(help="Largest error of a stored log-prob, in nats.")] = None,
    statistics: Annotated[
        bool | None, typer.Option("--statistics", help="Keep what gives raw logits back (NormKD and DKD need it).")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest sequence in tokens.")] = None,
    long_rows: Annotated[str | None, typer.Option(help="Longer rows: split or truncate.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Tokens a split row repeats as context.")] = None,
    positions: Annotated[str | None, typer.Option(help="all, or completion: what the assistant says.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column to read; found by its name otherwise.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a saved data set.", show_default="train")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a teacher from a hub.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = None,
    device_map: Annotated[str | None, typer.Option(help="For a teacher over several devices, such as auto.")] = None,
    tensor_parallel: Annotated[
        bool | None, typer.Option("--tensor-parallel", help="Split the teacher over torchrun's processes.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="Attention implementation, such as sdpa.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run code that comes with the teacher.")
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward pass.")] = None,
    shard_tokens: Annotated[int | None, typer.Option(help="Tokens after which a shard ends.")] = None,
    skip_non_finite: Annotated[
        bool | None, typer.Option("--skip-non-finite", help="Leave positions with NaN or infinite logits out.")
    ] = None,
    min_mass: Annotated[float | None, typer.Option(help="Warn if the top K cover less probability.")] = None,
    generate: Annotated[
        bool | None, typer.Option("--generate", help="Let the teacher answer prompts, and keep its answers.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer with --generate.", show_default="256")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of sampled answers; 0 takes the likeliest token.", show_default="0")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from this much probability.", show_default="1")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampled answers.", show_default="0")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the cache, for its card.")] = None,
    card_corpus: Annotated[str | None, typer.Option(help="What the corpus is, for the card.")] = None,
    card_purpose: Annotated[str | None, typer.Option(help="What the cache is for, for the card.")] = None,
    card_contact: Annotated[str | None, typer.Option(help="Whom to ask, for the card.")] = None,
    card_notes: Annotated[str | None, typer.Option(help="Free text for the card.")] = None,
    rank: Annotated[int | None, typer.Option(help="This worker, from 0. torchrun and Slurm are understood.")] = None,
    world_size: Annotated[int | None, typer.Option(help="Number of workers.")] = None,
    finalize: Annotated[
        bool | None, typer.Option("--finalize", help="Only write the manifest over shards that are all done.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, its size and its time; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a teacher over a corpus once, and keep its top-k logits as a cache."""
    flags = {name: value for name, value in locals().items() if name not in ("config", "dry_run", "as_json", "reuse")}
    settings, speaks = _settled(read_config(config), _given(flags))
    reuse = settings.pop("reuse", None) if reuse is None else reuse
    store = as_url(settings.get("out") or "")
    if store is not None:
        settings["out"] = staging_of(store)
    checked = make_config(_with_generation(_with_card(settings)))
    if store is not None and (checked.world_size > 1 or checked.tensor_parallel):
        raise ConfigError("several processes dump into one directory that all of them see; push the result afterwards")
    if reuse is not None and _print_reusable(reuse, checked, as_json, speaks):
        return
    if dry_run:
        with progress_bars(messages, enabled=speaks and not as_json) as report:
            planned = plan_dump(checked, report=report)
        if speaks:
            print_json(asdict(planned)) if as_json else _print_plan(planned)
        return
    started = time.monotonic()
    with progress_bars(messages, enabled=speaks and not as_json) as report:
        if store is None:
            cache, place = run_dump(checked, report=report), str(checked.out)
        else:
            cache = dump_staged(checked, store, report=report)
            place = send_staged(cache, store, report=report).target
    if not speaks:
        return
    if as_json:
        facts = {
            "path": place,
            "digest": cache.digest,
            "config": str(config_path(checked.out)) if store is None else None,
            "seconds": round(time.monotonic() - started, 3),
        }
        print_json({**facts, **cache.manifest.totals.model_dump()})
    else:
        _print_cache(cache, place)


def _settled(file: dict[str, Any], flags: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Settings of file, environment and flags, later ones winning; and whether this process speaks for its worker.

    The processes of a split teacher are one worker, so what torchrun numbers are no workers then.
    """
    worker = _worker_of_environment()
    if (file | flags).get("tensor_parallel"):
        return file | flags, worker.get("rank", 0) == 0
    return file | worker | flags, True


def _print_cache(cache: Cache, place: str) -> None:
    totals = cache.manifest.totals
    per_token = totals.bytes / max(totals.targets, 1)
    console.print(
        f"{place}: {totals.sequences:,} sequences, {totals.tokens:,} tokens, {totals.targets:,} targets in "
        f"{totals.shards:,} shards of {totals.bytes / 2**20:.1f} MiB together ({per_token:.1f} bytes a target)",
        soft_wrap=True,
        highlight=False,
    )
    console.print(cache.digest, highlight=False)


def _print_reusable(place: str, config: DumpConfig, as_json: bool, speaks: bool) -> bool:
    """Look for the cache that this dump would make, and tell where it is; False if nobody has made it."""
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
            f"this cache exists already: {escape(found.address)}\nuse it as it is, or dump it anyway without --reuse",
            highlight=False,
            soft_wrap=True,
        )
    return True


def _print_plan(plan: DryRun) -> None:
    workers = len(plan.workers)
    table = Table("", "", show_header=False, box=None)
    rows = {
        "rows": f"{plan.rows:,}" + (f" ({plan.empty_rows:,} without a prediction)" if plan.empty_rows else ""),
        "sequences": f"{plan.sequences:,}",
        "tokens": f"{plan.tokens:,} ({plan.filling:.1%} more to fill batches up)",
        "targets": f"{plan.targets:,}",
        "shards": f"{plan.shards:,}",
        "size": f"about {plan.bytes / 2**20:,.1f} MiB ({plan.bytes_per_target:.0f} bytes a target)",
        "time": f"about {timedelta(seconds=round(plan.seconds))} on {workers} worker{'s' if workers > 1 else ''} "
        f"at {plan.tokens_per_second:,.0f} tokens/s each, measured here",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for share in plan.workers if workers > 1 else ():
        last = share.first_shard + share.shards - 1
        does = f"shards {share.first_shard:,} to {last:,}, {share.tokens:,} tokens" if share.shards else "helps others"
        table.add_row(f"worker {share.rank}", does)
    console.print(table)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value != []}


def _with_card(settings: dict[str, Any]) -> dict[str, Any]:
    """Gather the card's flags into one setting."""
    card = dict(settings.get("card") or {})
    rest = {}
    for name, value in settings.items():
        if name == "licence":
            card["licence"] = value
        elif name.startswith("card_"):
            card[name.removeprefix("card_")] = value
        elif name == "format":
            rest["shard_format"] = value
        elif name != "card":
            rest[name] = value
    return rest | ({"card": card} if card else {})


_GENERATION = ("max_new_tokens", "temperature", "top_p", "seed")


def _with_generation(settings: dict[str, Any]) -> dict[str, Any]:
    """Gather the answers' flags into one setting."""
    given = {name: settings[name] for name in _GENERATION if name in settings}
    rest = {name: value for name, value in settings.items() if name not in given}
    wanted = rest.pop("generate", None)
    if given and not wanted:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')} needs --generate")
    if not wanted:
        return rest
    return rest | {"generate": (wanted if isinstance(wanted, dict) else {}) | given}


_WORKER_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def _worker_of_environment() -> dict[str, int]:
    """Rank and world size under torchrun or Slurm."""
    for rank_name, size_name in _WORKER_VARIABLES:
        rank, size = os.environ.get(rank_name, ""), os.environ.get(size_name, "")
        if rank.isdecimal() and size.isdecimal() and int(size) > 1:
            first = os.environ.get("SLURM_ARRAY_TASK_MIN", "0") if "ARRAY" in rank_name else "0"
            return {"rank": (int(rank) - int(first)) % int(size), "world_size": int(size)}
    return {}
