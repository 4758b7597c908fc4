"""What the commands that load students share: a table of metrics, and fewer messages of transformers."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from logitcache.evaluate.measure import Metrics
from logitcache.evaluate.shown import SHOWN


def comparison_table(students: Mapping[str, Metrics]) -> Table:
    """One column per student, one row per metric, the best value of each row in bold."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in students:
        table.add_column(name, justify="right")
    flat = {name: metrics.flat() for name, metrics in students.items()}
    for shown in SHOWN:
        values = [one[shown.key] for one in flat.values() if shown.key in one]
        if len(values) < len(flat):
            continue
        best = shown.best(values)
        cells = [
            f"[bold green]{shown.text(value)}[/]" if value == best and len(values) > 1 else shown.text(value)
            for value in values
        ]
        table.add_row(shown.title, *cells)
    return table


def quiet_transformers() -> None:
    """Turn off the progress bars and notes of transformers, because logitcache shows its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
