"""`logitcache dump`: stage 1."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from logitcache.dump import config_path, make_config, plan_dump, preview_rows
from logitcache.dump import dump as run_dump
from logitcache.dump.to_store import dump_staged, send_staged, staging_of
from logitcache.errors import ConfigError
from logitcache.stores.url import as_url
from logitcache.utils.progress import progress_bars

from .common import messages, print_json, read_assignments, read_config
from .dump_output import print_cache, print_plan, print_preview, print_reusable

#: Flags that are no settings of the dump, or are read in a way of their own.
_NO_SETTINGS = ("config", "dry_run", "as_json", "reuse", "preview", "template_args")


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
    long_rows: Annotated[
        str | None,
        typer.Option(
            help="Longer rows: split, truncate or drop. auto splits documents, and truncates chats and completions.",
            show_default="auto",
        ),
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Tokens a split row repeats as context.")] = None,
    end_of_text: Annotated[
        str | None, typer.Option(help="What ends a plain document: auto, none, or a token.", show_default="auto")
    ] = None,
    bad_rows: Annotated[
        str | None, typer.Option(help="Rows that can't be taken right: stop, or skip and count.", show_default="stop")
    ] = None,
    positions: Annotated[str | None, typer.Option(help="all, or completion: what the assistant says.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column to read; found by its name otherwise.")] = None,
    data_kind: Annotated[
        str | None,
        typer.Option(help="What each file is, whatever its name: text, jsonl, json, csv, tsv, parquet or arrow."),
    ] = None,
    chat_template: Annotated[Path | None, typer.Option(help="File with a chat template to use instead.")] = None,
    template_args: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Variable of the chat template, such as enable_thinking=false."),
    ] = None,
    turns: Annotated[
        str | None, typer.Option(help="Assistant turns of a chat to learn: all, or the last.", show_default="all")
    ] = None,
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
    preview: Annotated[
        int | None, typer.Option(min=1, help="Print so many rows as they will be read, without loading the teacher.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a teacher over a corpus once, and keep its top-k logits as a cache."""
    flags = {name: value for name, value in locals().items() if name not in _NO_SETTINGS}
    flags["template_args"] = read_assignments("--template-args", template_args) or None
    settings, speaks = _settled(read_config(config), _given(flags))
    reuse = settings.pop("reuse", None) if reuse is None else reuse
    if preview is not None:
        checked = make_config(_with_generation(_with_card({"out": "unused"} | settings)))
        print_preview(*preview_rows(checked, preview), as_json=as_json)
        return
    store = as_url(settings.get("out") or "")
    if store is not None:
        settings["out"] = staging_of(store)
    checked = make_config(_with_generation(_with_card(settings)))
    if store is not None and (checked.world_size > 1 or checked.tensor_parallel):
        raise ConfigError("several processes dump into one directory that all of them see; push the result afterwards")
    if reuse is not None and print_reusable(reuse, checked, as_json, speaks):
        return
    if dry_run:
        with progress_bars(messages, enabled=speaks and not as_json) as report:
            planned = plan_dump(checked, report=report)
        if speaks:
            print_json(asdict(planned)) if as_json else print_plan(planned)
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
        rows = cache.manifest.provenance.settings.get("rows")
        print_json({**facts, **cache.manifest.totals.model_dump(), "rows": rows})
    else:
        print_cache(cache, place)


def _settled(file: dict[str, Any], flags: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Settings of file, environment and flags, later ones winning; and whether this process speaks for its worker.

    The processes of a split teacher are one worker, so what torchrun numbers are no workers then.
    """
    worker = _worker_of_environment()
    if (file | flags).get("tensor_parallel"):
        return file | flags, worker.get("rank", 0) == 0
    return file | worker | flags, True


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
