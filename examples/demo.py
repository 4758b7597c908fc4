"""All steps on a real model: dump a teacher, make a student from its layers, train it from the cache, compare.

    python examples/demo.py --teacher .models/SmolLM2-135M-Instruct --out demo-out --seed 0

Writes the two caches, the trained student with its report, ``demo.json`` and ``demo.png`` under ``--out``. Existing
caches are used again, so a second seed only repeats the training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers.utils import logging

import logitcache as lc
from logitcache.cli.common import warnings_in_a_line
from logitcache.students.cut import make_student
from logitcache.utils.progress import progress_bars

TEXT = Path(__file__).parent / "data"
# A third of the teacher's 30, from both ends. Ten evenly spaced layers start much worse (KL 12 nats).
LAYERS = (0, 1, 2, 3, 4, 5, 6, 27, 28, 29)
# At first the student's top 8 have almost no id in common with the teacher's. BiLD compares only these ids, so alone it
# can't make other ids more probable. The KL with all other ids as one event can; BiLD then corrects their order.
SETTINGS: dict[str, Any] = {
    "loss": "bild=1.0,residual_kl=1.0",
    "epochs": 2,
    "batch_size": 1,
    "learning_rate": 1e-3,
    "checkpoint_every": 0,
}
# What the table and the picture show: name in the metrics, title, how to print it, and whether less is better.
SHOWN = (
    ("kl", "KL(teacher ‖ student), nats", "{:.2f}", True),
    ("cross_entropy", "cross-entropy, nats", "{:.2f}", True),
    ("top1_agreement", "same first choice", "{:.0%}", False),
    ("overlap@8", "overlap@8", "{:.0%}", False),
)


@dataclass(frozen=True)
class Paths:
    """Where the demo puts things."""

    out: Path
    seed: int

    @property
    def train_cache(self) -> Path:
        return self.out / "train.cache"

    @property
    def heldout_cache(self) -> Path:
        return self.out / "heldout.cache"

    @property
    def start(self) -> Path:
        return self.out / "student-before"

    @property
    def trained(self) -> Path:
        return self.out / f"student-seed{self.seed}"


def dump(teacher: Path, folder: str, out: Path, console: Console) -> None:
    """Stage 1, over one folder of the example text."""
    if (out / "manifest.json").exists():
        console.print(f"{out} exists already")
        return
    with progress_bars(console) as report:
        lc.dump(teacher=str(teacher), data=[str(TEXT / folder / "*.txt")], out=out, max_length=512, report=report)


def train(paths: Paths, console: Console) -> float:
    """Stage 2. Returns the seconds that it took. The teacher's files are no longer needed."""
    shutil.rmtree(paths.trained, ignore_errors=True)
    began = time.perf_counter()
    with progress_bars(console) as report:
        lc.train(
            cache=paths.train_cache,
            student=paths.start,
            out=paths.trained,
            seed=paths.seed,
            report=report,
            **SETTINGS,
        )
    return time.perf_counter() - began


def measure(paths: Paths, student: Path, console: Console) -> dict[str, float]:
    """Measure a student with the held-out cache."""
    with progress_bars(console) as report:
        return lc.evaluate(paths.heldout_cache, student, report=report).flat()


def show(before: dict[str, float], after: dict[str, float], console: Console) -> None:
    """Print a table of before and after."""
    table = Table(title="Student compared with teacher, on text that it wasn't trained on")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for name, title, form, _ in SHOWN:
        table.add_row(title, form.format(before[name]), form.format(after[name]))
    console.print(table)
    console.print(f"KL lower by {1 - after['kl'] / before['kl']:.0%}", highlight=False)


def draw(before: dict[str, float], after: dict[str, float], path: Path) -> None:
    """Draw one panel per metric, before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    figure.suptitle("A 10-layer student of SmolLM2-135M, before and after training from the cache (held-out text)")
    for panel, (name, title, form, less_is_better) in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        bars = panel.bar(["before", "after"], [before[name], after[name]], color=["#b8bcc8", "#3f51b5"], width=0.6)
        panel.bar_label(bars, fmt=form, padding=2)
        panel.set_title(f"{title}\n({'less' if less_is_better else 'more'} is better)", fontsize=9)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.set_yticks([])
        panel.margins(y=0.15)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="a transformers directory")
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable_progress_bar()  # each stage has its own progress bar
    console, paths = Console(), Paths(arguments.out, arguments.seed)
    paths.out.mkdir(parents=True, exist_ok=True)

    console.rule("1. Dump: the teacher runs once")
    dump(arguments.teacher, "train", paths.train_cache, console)
    dump(arguments.teacher, "heldout", paths.heldout_cache, console)
    console.rule(f"2. A student: {len(LAYERS)} of the teacher's layers")
    if not paths.start.exists():
        make_student(arguments.teacher, paths.start, layers=LAYERS)
    before = measure(paths, paths.start, console)
    console.rule("3. Train: from the cache alone")
    seconds = train(paths, console)
    after = measure(paths, paths.trained, console)

    console.rule("4. Result")
    show(before, after, console)
    result = {"seed": paths.seed, "settings": SETTINGS, "train_seconds": seconds, "before": before, "after": after}
    (paths.out / "demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(before, after, paths.out / "demo.png")
    console.print(f"Wrote {paths.out / 'demo.json'}, {paths.out / 'demo.png'}, and the student in {paths.trained}")


if __name__ == "__main__":
    with warnings_in_a_line():
        main()
