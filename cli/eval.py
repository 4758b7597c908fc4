"""`logitcache eval`: measure students against a cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json
from .measures import comparison_table, quiet_transformers

if TYPE_CHECKING:
    from logitcache.evaluate.measure import Metrics


def evaluate(
    cache: Annotated[str, typer.Option(help="The cache to measure with; its text should not be training data.")],
    student: Annotated[
        str | None, typer.Option(help="The student: a model's or adapter's directory, a GGUF file or a hub id.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare several students: --compare DIR DIR …")] = False,
    students: Annotated[list[str] | None, typer.Argument(help="Students to compare.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a forward pass.")] = 8,
    dtype: Annotated[str, typer.Option(help="Data type of the student's weights: fp32, bf16 or fp16.")] = "fp32",
    plot: Annotated[Path | None, typer.Option(help="Draw the comparison into this file (.png, .svg or .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Measure how close a student is to the teacher of a cache. The teacher isn't needed.

    Example: logitcache eval --cache held-out --compare student trained
    """
    from logitcache.cache.opening import open_place
    from logitcache.errors import ConfigError
    from logitcache.evaluate.measure import evaluate as measure
    from logitcache.models.dtypes import DTYPES

    names = list(dict.fromkeys(([student] if student else []) + (students or [])))
    if not names or (len(names) > 1 and not compare):
        raise ConfigError("give one student with --student DIR, or several with --compare DIR DIR …")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r} is not allowed; choose from {', '.join(DTYPES)}")
    quiet_transformers()
    opened = open_place(cache)
    results: dict[str, Metrics] = {}
    for name in names:
        with progress_bars(messages) as report:
            results[name] = measure(opened, name, batch_size=batch_size, dtype=DTYPES[dtype], report=report)
    if plot is not None:
        draw(results, plot)
    if as_json:
        shown = {name: metrics.as_dict() for name, metrics in results.items()}
        print_json(shown[names[0]] if len(names) == 1 else shown)
        return
    console.print(comparison_table(results))
    console.print(f"{results[names[0]].positions:,} positions of {opened.address}", highlight=False)


def draw(results: Mapping[str, Metrics], path: Path) -> None:
    """Write the comparison as a picture."""
    from logitcache.errors import ConfigError, MissingDependencyError
    from logitcache.evaluate.report import draw_comparison

    figure = draw_comparison(results)
    if figure is None:
        raise MissingDependencyError("--plot needs matplotlib: pip install 'logitcache[plot]'")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"plot = {str(path)!r} is not allowed; the name must end in .png, .svg or .pdf")
    figure.savefig(path, dpi=150)
