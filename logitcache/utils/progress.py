"""Progress is reported to a plain callback: the library needs no terminal, and the command line draws the bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

#: ``report(phase, done, total, unit)``: ``done`` of ``total`` units so far in this phase; total None if unknown.
Report = Callable[[str, int, int | None, str], None]


def silent(phase: str, done: int, total: int | None, unit: str) -> None:
    """Report nothing: the default of the library."""


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        speed = task.finished_speed or task.speed
        rate = f"{speed:,.0f} {unit}/s" if speed else f"– {unit}/s"
        total = f"/{task.total:,.0f}" if task.total is not None else ""
        return Text(f"{task.completed:,.0f}{total} {unit}  {rate}", style="progress.data.speed")


@contextmanager
def progress_bars(console: Console, *, enabled: bool = True) -> Iterator[Report]:
    """Draw one bar for each phase, with rate and time left, while the context lasts; draw nothing if not enabled."""
    if not enabled:
        yield silent
        return
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), _RateColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, speed_estimate_period=60)
    tasks: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int | None, unit: str) -> None:
        if not tasks:
            bars.start()  # started late, because bars without a task print an empty line
        if phase not in tasks:
            tasks[phase] = bars.add_task(phase, total=total, unit=unit)
        bars.update(tasks[phase], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
