"""The report of a training run: one HTML page that needs no other file, its figure as PNG, and all values as JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from logitcache.evaluate.measure import Metrics
from logitcache.evaluate.shown import SHOWN
from logitcache.utils.atomic import write_atomically

NO_PLOT = "no curves and no report.png: matplotlib isn't installed (pip install 'logitcache[plot]')"
BLUE, ORANGE, GREY = "#3f51b5", "#e07b39", "#9aa0ae"
_PAGE = Environment(loader=PackageLoader("logitcache.evaluate", "."), autoescape=True, undefined=StrictUndefined)


def write_report(
    out: Path,
    *,
    title: str,
    history: Sequence[Mapping[str, Any]],
    before: Metrics | None,
    after: Metrics | None,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> list[Path]:
    """Write ``report.json``, ``report.html`` and, where matplotlib is installed, ``report.png`` into ``out``.

    Args:
        out: directory to write to.
        title: the page's headline.
        history: the training log.
        before, after: measurements before and after training; None if there are none.
        settings: the resolved configuration.
        facts: further plain values, such as the cache's digest.

    Returns:
        The files that were written.

    Raises:
        StorageError: the system refused.
    """
    summary = summarise(history) | dict(facts)
    content = {
        "title": title,
        "summary": summary,
        "before": None if before is None else before.as_dict(),
        "after": None if after is None else after.as_dict(),
        "settings": dict(settings),
        "history": [dict(entry) for entry in history],
    }
    figure = draw_training(history)
    written = [out / "report.json", out / "report.html"]
    write_atomically(written[0], json.dumps(content, indent=2, default=str) + "\n")
    write_atomically(written[1], page(title, summary, before, after, settings, _svg(figure)))
    if figure is not None:
        written.append(out / "report.png")
        figure.savefig(written[-1], dpi=150)
    return written


def summarise(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals of a log: steps, training seconds (without evaluation), tokens per second, share of time waiting."""
    steps = [entry for entry in history if "loss" in entry and "seconds" in entry]
    seconds = sum(entry["seconds"] for entry in steps)
    tokens = sum(entry["tokens_per_second"] * entry["seconds"] for entry in steps)
    waiting = sum(entry["waiting_share"] * entry["seconds"] for entry in steps)
    return {
        "steps": steps[-1]["step"] if steps else 0,
        "tokens": round(tokens),
        "training_seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "waiting_share": round(waiting / seconds, 5) if seconds else None,
        "last_loss": steps[-1]["loss"] if steps else None,
    }


def draw_training(history: Sequence[Mapping[str, Any]]) -> Any | None:
    """The curves of a run; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps = [entry for entry in history if "loss" in entry]
    measured = [entry for entry in history if "eval_kl" in entry]
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3).flat
    at = [entry["step"] for entry in steps]
    losses = [entry["loss"] for entry in steps]
    _curve(next(panels), "training loss", at, {"each step": losses, "smoothed": _smooth(losses)})
    eval_at = [entry["step"] for entry in measured]
    _curve(next(panels), "held-out KL(teacher ‖ student), nats", eval_at, {"kl": [e["eval_kl"] for e in measured]})
    overlaps = sorted({key for entry in measured for key in entry if key.startswith("eval_overlap@")}, key=_k_of)
    lines = {name.removeprefix("eval_"): [entry.get(name, math.nan) for entry in measured] for name in overlaps}
    _curve(next(panels), "held-out overlap with the teacher", eval_at, lines, bottom=0, top=1)
    covered = [entry for entry in steps if "s_ld_coverage" in entry]
    panel, title = next(panels), "student's top 8 held by the cache, %"
    if covered:
        lines = {"training": [100 * entry["s_ld_coverage"] for entry in covered]}
        _curve(panel, title, [entry["step"] for entry in covered], lines, bottom=0)
    else:
        lines = {"held-out": [100 * entry["eval_s_ld_coverage"] for entry in measured]}
        _curve(panel, title, eval_at, lines, bottom=0)
    rates = [entry.get("tokens_per_second", math.nan) for entry in steps]
    _curve(next(panels), "tokens/s", at, {"tokens/s": rates}, bottom=0)
    waits = [100 * entry.get("waiting_share", math.nan) for entry in steps]
    _curve(next(panels), "time waiting for data, %", at, {"waiting": waits}, bottom=0, top=2)
    return figure


def draw_comparison(students: Mapping[str, Metrics]) -> Any | None:
    """A figure of several students, with one panel per metric; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    chosen = [shown for shown in SHOWN if shown.key in ("kl", "perplexity", "top1_agreement", "overlap@8")]
    figure = Figure(figsize=(11, 1.2 + 0.45 * len(students)), layout="constrained")
    names = list(students)
    for panel, shown in zip(figure.subplots(1, len(chosen), sharey=True), chosen, strict=True):
        values = [students[name].flat().get(shown.key, math.nan) for name in names]
        best = shown.best(values)
        bars = panel.barh(names, values, color=[BLUE if value == best else GREY for value in values], height=0.6)
        panel.bar_label(bars, labels=[shown.text(value) for value in values], padding=3, fontsize=8)
        panel.set_title(f"{shown.title}\n({'less' if shown.less_is_better else 'more'} is better)", fontsize=9)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.set_xticks([])
        panel.margins(x=0.25)
    figure.axes[0].invert_yaxis()  # the first at the top; the panels share the axis
    return figure


def page(
    title: str,
    summary: Mapping[str, Any],
    before: Metrics | None,
    after: Metrics | None,
    settings: Mapping[str, Any],
    figure: str | None,
) -> str:
    """The HTML page, from ``report.html.jinja``. It needs no other file. Everything except the figure is escaped."""
    measured = None
    if before is not None and after is not None:
        measured = {"rows": _changes(before, after), "positions": f"{after.positions:,}"}
    return _PAGE.get_template("report.html.jinja").render(
        title=title,
        cache=summary.get("cache", ""),
        tiles=_tiles(summary),
        caches=[_share(one) for one in summary.get("caches", ())],
        measured=measured,
        figure=figure,
        no_plot=NO_PLOT,
        settings=settings,
    )


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rate, share = summary.get("tokens_per_second"), summary.get("waiting_share")
    return [
        (f"{summary['steps']:,}", "optimizer steps"),
        (f"{summary['tokens']:,}", "tokens"),
        (f"{summary['training_seconds']:,.0f} s", "training"),
        ("–" if rate is None else f"{rate:,.0f}", "tokens/s"),
        ("–" if share is None else f"{share:.2%}", "of the time waiting for data"),
    ]


def _changes(before: Metrics, after: Metrics) -> list[dict[str, Any]]:
    """What training changed: a row for each metric that both measurements have."""
    one, two = before.flat(), after.flat()
    rows = []
    for shown in SHOWN:
        key = shown.key
        if key not in one or key not in two:
            continue
        better = two[key] != one[key] and shown.best((one[key], two[key])) == two[key]
        change = f"{two[key] / one[key] - 1:+.0%}" if one[key] else "–"
        cells = (shown.title, shown.text(one[key]), shown.text(two[key]), change)
        rows.append({"cells": cells, "kind": "good" if better else "bad"})
    return rows


def _share(component: Mapping[str, Any]) -> dict[str, Any]:
    """A row that says how much an epoch takes from one cache of a mixture."""
    cells = (
        f"{Path(component['cache']).name} ({component['digest'][:19]}…)",
        f"{component['share']:.1%}",
        f"{component['tokens_per_epoch']:,}",
        f"{component['passes_per_epoch']:g}",
    )
    return {"cells": cells, "kind": ""}


def _curve(
    panel: Any,
    title: str,
    at: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    bottom: float | None = None,
    top: float = 0,
) -> None:
    """Draw lines. The axis begins at ``bottom``, by default near the lowest value, and ends at ``top`` or above."""
    panel.set_title(title, fontsize=10)
    if not at:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=panel.transAxes)
        return
    colours = [GREY, BLUE] if "smoothed" in lines else [BLUE, ORANGE, "#2f9e8f", GREY]
    for (name, values), colour in zip(lines.items(), colours * 3, strict=False):
        marker = "o" if len(at) <= 30 else None
        panel.plot(at, values, color=colour, label=name, marker=marker, markersize=3, linewidth=1.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e4e6ee")
    panel.set_xlabel("step", fontsize=8)
    panel.tick_params(labelsize=8)
    if bottom is not None:
        panel.set_ylim(bottom, max(top * 1.02, panel.get_ylim()[1]))
    if len(lines) > 1:
        panel.legend(frameon=False, fontsize=8)


def _smooth(values: Sequence[float], keep: float = 0.8) -> list[float]:
    """Exponential moving average, without the bias of its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _k_of(name: str) -> int:
    return int(name.rsplit("@", 1)[1])


def _svg(figure: Any | None) -> str | None:
    if figure is None:
        return None
    buffer = io.StringIO()
    # Without the date, the same run gives the same page.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
