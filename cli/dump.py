"""`logitcache dump`: stage 1."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from logitcache.dump import DumpConfig, config_path, make_config, plan_dump, preview_rows
from logitcache.dump import dump as run_dump
from logitcache.dump.to_store import dump_staged, send_staged, staging_directory
from logitcache.errors import ConfigError
from logitcache.stores.url import as_url
from logitcache.utils.progress import progress_bars

from .common import messages, print_json, read_config
from .dump_output import print_cache, print_plan, print_preview, print_reusable
from .estimate import HardwareOption, described
from .options import gather, options_of


@options_of(DumpConfig)
def dump(
    given: dict[str, Any],
    *,
    reuse: Annotated[
        str | None,
        typer.Option(help="URL or directory with caches. If one of them is the wanted cache, print its address only."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags override it.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with its size and time; write nothing.")
    ] = False,
    hardware: HardwareOption = None,
    preview: Annotated[
        int | None, typer.Option(min=1, help="Print this many rows as they will be read; don't load the teacher.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a teacher over a corpus once, and keep its top-k logits as a cache."""
    devices = described(hardware, dry_run=dry_run)
    file = read_config(config)
    reuse = file.pop("reuse", None) if reuse is None else reuse
    settings, speaks = _settled(file, given)
    if preview is not None:
        print_preview(*preview_rows(make_config({"out": "unused"} | settings), preview), as_json=as_json)
        return
    store = as_url(settings.get("out") or "")
    if store is not None:
        settings["out"] = staging_directory(store)
    checked = make_config(settings)
    if store is not None and (checked.world_size > 1 or checked.tensor_parallel):
        raise ConfigError("several processes can't dump to a URL: use a directory that all can read, then push it")
    if reuse is not None and print_reusable(reuse, checked, as_json, speaks):
        return
    if dry_run:
        with progress_bars(messages, enabled=speaks and not as_json) as report:
            planned = plan_dump(checked, hardware=devices, report=report)
        if speaks:
            print_json(asdict(planned)) if as_json else print_plan(planned)
        return
    _run(checked, store, as_json, speaks)


def _run(config: DumpConfig, store: str | None, as_json: bool, speaks: bool) -> None:
    """Dump, push the cache to ``store`` if one is given, and print the result."""
    started = time.monotonic()
    with progress_bars(messages, enabled=speaks and not as_json) as report:
        if store is None:
            cache, place = run_dump(config, report=report), str(config.out)
        else:
            cache = dump_staged(config, store, report=report)
            place = send_staged(cache, store, report=report).target
    if not speaks:
        return
    if as_json:
        facts = {
            "path": place,
            "digest": cache.digest,
            "config": str(config_path(config.out)) if store is None else None,
            "seconds": round(time.monotonic() - started, 3),
        }
        rows = cache.manifest.provenance.settings.get("rows")
        print_json({**facts, **cache.manifest.totals.model_dump(), "rows": rows})
    else:
        print_cache(cache, place)


def _settled(file: dict[str, Any], flags: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Settings of file, environment and flags, where later ones override; and whether this process prints.

    The processes of a split teacher are one worker. Then the ranks of torchrun are not workers, and only rank 0 prints.
    """
    worker, settings = _worker_of_environment(), gather(DumpConfig, file, flags)
    if settings.get("tensor_parallel"):
        return settings, worker.get("rank", 0) == 0
    return gather(DumpConfig, file, worker, flags), True


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
