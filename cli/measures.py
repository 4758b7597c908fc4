"""What the commands that load students share: a table of metrics, and fewer messages of transformers."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from logitcache.evaluate.measure import Metrics

# name in Metrics.flat(), heading, format, True if lower is better
ROWS = (
    ("kl", "KL(teacher ‖ student), nats", "{:.4f}", True),
    ("cross_entropy", "cross-entropy, nats", "{:.4f}", True),
    ("perplexity", "perplexity", "{:,.2f}", True),
    ("top1_agreement", "top-1 agreement", "{:.1%}", False),
    ("overlap@8", "overlap@8", "{:.1%}", False),
    ("overlap@32", "overlap@32", "{:.1%}", False),
    ("s_ld_coverage", "s-LD coverage", "{:.1%}", False),
)


def comparison_table(students: Mapping[str, Metrics]) -> Table:
    """One column per student, one row per metric, the best value of each row in bold."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in students:
        table.add_column(name, justify="right")
    flat = {name: metrics.flat() for name, metrics in students.items()}
    for key, heading, form, lower in ROWS:
        values = [one[key] for one in flat.values() if key in one]
        if len(values) < len(flat):
            continue
        best = min(values) if lower else max(values)
        cells = [
            f"[bold green]{form.format(value)}[/]" if value == best and len(values) > 1 else form.format(value)
            for value in values
        ]
        table.add_row(heading, *cells)
    return table


def quiet_transformers() -> None:
    """Turn off the progress bars and notes of transformers, because logitcache shows its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
