"""The result of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.evaluate.measure import Metrics


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        out: directory of the trained student.
        steps: number of optimizer steps, with those before a resume.
        before, after: metrics on the held-out cache before and after training, or None without such a cache.
        history: the log, one entry for each step or evaluation.
        seconds: duration of this run, with evaluations and checkpoints.
        notes: notes for the user about student and cache.
        files: the report's files.
    """

    out: Path
    steps: int
    before: Metrics | None
    after: Metrics | None
    history: list[dict[str, Any]]
    seconds: float
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the history is in the report."""
        return {
            "out": str(self.out),
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "before": None if self.before is None else self.before.as_dict(),
            "after": None if self.after is None else self.after.as_dict(),
            "notes": list(self.notes),
            "report": [str(path) for path in self.files],
        }


def evaluations(history: list[dict[str, Any]]) -> list[tuple[int, Metrics]]:
    """The evaluations in a log: (step, metrics)."""
    return [(entry["step"], Metrics.from_flat(entry, "eval_")) for entry in history if "eval_kl" in entry]
