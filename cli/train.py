"""`logitcache train`: train a student from a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from logitcache.errors import ConfigError
from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json, read_config
from .measures import comparison_table, quiet_transformers


def train(
    cache: Annotated[list[str] | None, typer.Option(help="The cache to learn from; several are mixed.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Each cache's share of the tokens: 0.7,0.3; by default each comes once an epoch.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="The student: a model's or adapter's directory, a GGUF file or a hub id.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the trained student goes; must not exist yet.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="A loss, or a weighted sum such as bild=1.0,cross_entropy=0.1; by default bild."),
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(help="Train one student for each of several losses and compare them: bild,top_kl,bild+top_kl."),
    ] = None,
    eval_cache: Annotated[str | None, typer.Option(help="A held-out cache to measure the student against.")] = None,
    audit: Annotated[
        str | None, typer.Option(help="A cache with every id at a few positions, to set and measure s-LD's fill.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the cache.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many optimizer steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Learning-rate schedule, as transformers names them.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps that warm up.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of an optimizer step, over all ranks.")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(help="Rows of one forward pass on one rank.")] = None,
    pack_tokens: Annotated[int | None, typer.Option(help="Pack sequences into rows of up to so many tokens.")] = None,
    min_length: Annotated[int | None, typer.Option(help="Leave out sequences of fewer tokens.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Leave out sequences of more tokens.")] = None,
    min_mass: Annotated[float | None, typer.Option(help="Learn only where the top K hold so much probability.")] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Learn only where the teacher's best id is at least so probable.")
    ] = None,
    max_confidence: Annotated[float | None, typer.Option(help="Learn only where it is at most so probable.")] = None,
    max_entropy: Annotated[
        float | None, typer.Option(help="Learn only where the teacher's entropy is at most this, in nats.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Order of samples, dropout, adapters.")] = None,
    dtype: Annotated[str | None, typer.Option(help="The student's weights: fp32, bf16 or fp16.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="Compute in half precision: no, bf16 or fp16.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Train only LoRA adapters of this rank.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; by default an epoch.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; by default an epoch, 0 for none.")
    ] = None,
    resume: Annotated[bool | None, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; flags win. `trainer:` takes TrainingArguments.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, show the plan, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a student from a cache; the teacher is not needed.

    Example: logitcache train --cache cache --student student --out trained --loss bild --eval-cache held-out
    """
    flags = {
        "cache": cache[0] if cache and len(cache) == 1 else cache or None,
        "weights": None if weights is None else split_weights(weights),
        "student": student,
        "out": out,
        "loss": loss,
        "eval_cache": eval_cache,
        "audit": audit,
        "epochs": epochs,
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup": warmup,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "pack_tokens": pack_tokens,
        "min_length": min_length,
        "max_length": max_length,
        "min_mass": min_mass,
        "min_confidence": min_confidence,
        "max_confidence": max_confidence,
        "max_entropy": max_entropy,
        "seed": seed,
        "dtype": dtype,
        "mixed_precision": mixed_precision,
        "lora_rank": lora_rank,
        "eval_every": eval_every,
        "checkpoint_every": checkpoint_every,
        "resume": resume,
    }
    settings = read_config(config) | {name: value for name, value in flags.items() if value is not None}
    if losses is not None:
        compare_losses(settings, losses, as_json=as_json)
    else:
        run_training(settings, dry_run=dry_run, as_json=as_json)


def split_weights(text: str) -> list[float]:
    """The numbers of ``0.7,0.3``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"weights = {text!r} is not allowed; give a number for each cache: 0.7,0.3") from error


def compare_losses(settings: dict[str, Any], losses: str, *, as_json: bool) -> None:
    from logitcache.train import TrainConfig, is_first_rank, split_losses, train_each

    parsed, names = TrainConfig.parse(settings), split_losses(losses)
    quiet_transformers()
    with progress_bars(messages, enabled=is_first_rank()) as report:
        results = train_each(parsed, names, report=report)
    if not is_first_rank():
        return
    if as_json:
        print_json({name: metrics.as_dict() for name, metrics in results.items()})
        return
    console.print(comparison_table(results))
    console.print(f"the students and comparison.json are in {parsed.out}", highlight=False)


def describe_component(component: dict[str, Any]) -> str:
    """One cache of a mixture in a line."""
    return (
        f"{component['share']:.1%} = {component['tokens_per_epoch']:,} tokens an epoch "
        f"({component['passes_per_epoch']:g} passes) from {component['cache']}, {component['digest'][:19]}…"
    )


def run_training(settings: dict[str, Any], *, dry_run: bool, as_json: bool) -> None:
    from logitcache.train import TrainConfig, is_first_rank, plan
    from logitcache.train import train as run

    parsed = TrainConfig.parse(settings)
    quiet_transformers()
    if dry_run:
        planned = plan(parsed)
        if as_json:
            print_json(planned)
            return
        for name, value in planned.items():
            if name == "caches":
                for one in value:
                    console.print(f"  {describe_component(one)}", highlight=False)
                continue
            if value not in (None, []):
                told = "; ".join(value) if name == "notes" else value
                console.print(f"{name.replace('_', ' ')}: {told}", highlight=False)
        return
    with progress_bars(messages, enabled=is_first_rank()) as report:
        result = run(parsed, report=report)
    if not is_first_rank():
        return
    for note in result.notes:
        messages.print(f"note: {note}", highlight=False)
    if as_json:
        print_json(result.as_dict())
        return
    if result.before is not None and result.after is not None:
        console.print(comparison_table({"before": result.before, "after": result.after}))
    console.print(f"{result.steps:,} steps in {result.seconds:,.0f} s; the student is in {result.out}", highlight=False)
