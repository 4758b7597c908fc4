"""`logitcache train`: train a student from a cache."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from logitcache.models.hardware import Hardware
from logitcache.train import TrainConfig, is_first_rank, plan, split_losses, train_each
from logitcache.train import train as run
from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json, read_config
from .estimate import HardwareOption, described, estimate_lines
from .measures import comparison_table, quiet_transformers
from .options import gather, options_of


@options_of(TrainConfig)
def train(
    given: dict[str, Any],
    *,
    losses: Annotated[
        str | None,
        typer.Option(help="Train one student for each of several losses and compare them: bild,top_kl,bild+top_kl."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; flags override it. `trainer:` takes TrainingArguments.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the settings, print the plan, write nothing.")
    ] = False,
    hardware: HardwareOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a student from a cache. The teacher isn't needed.

    Example: logitcache train --cache cache --student student --out trained --loss bild --eval-cache held-out
    """
    parsed = TrainConfig.parse(gather(TrainConfig, read_config(config), given))
    devices = described(hardware, dry_run=dry_run)
    if losses is not None:
        compare_losses(parsed, losses, as_json=as_json)
    elif dry_run:
        show_plan(parsed, devices, as_json=as_json)
    else:
        run_training(parsed, as_json=as_json)


def compare_losses(config: TrainConfig, losses: str, *, as_json: bool) -> None:
    names = split_losses(losses)
    quiet_transformers()
    with progress_bars(messages, enabled=is_first_rank()) as report:
        results = train_each(config, names, report=report)
    if not is_first_rank():
        return
    if as_json:
        print_json({name: metrics.as_dict() for name, metrics in results.items()})
        return
    console.print(comparison_table(results))
    console.print(f"the students and comparison.json are in {config.out}", highlight=False)


def show_plan(config: TrainConfig, hardware: Hardware | None, *, as_json: bool) -> None:
    quiet_transformers()
    planned = plan(config, hardware)
    estimate = planned.pop("estimate")
    if as_json:
        print_json(planned | {"estimate": estimate and asdict(estimate)})
        return
    for name, value in planned.items():
        if name == "caches":
            for one in value:
                console.print(f"  {describe_component(one)}", highlight=False)
            continue
        if value not in (None, []):
            told = "; ".join(value) if name == "notes" else value
            console.print(f"{name.replace('_', ' ')}: {told}", highlight=False)
    for name, told in () if estimate is None else estimate_lines(estimate, "step", planned["optimizer_steps"]):
        console.print(f"{name}: {told}", highlight=False, soft_wrap=True)


def describe_component(component: dict[str, Any]) -> str:
    """One line about one cache of a mixture."""
    return (
        f"{component['share']:.1%} = {component['tokens_per_epoch']:,} tokens an epoch "
        f"({component['passes_per_epoch']:g} passes) from {component['cache']}, {component['digest'][:19]}…"
    )


def run_training(config: TrainConfig, *, as_json: bool) -> None:
    quiet_transformers()
    with progress_bars(messages, enabled=is_first_rank()) as report:
        result = run(config, report=report)
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
