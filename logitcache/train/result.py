"""What a training run did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.evaluate.measure import Metrics


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Attributes:
        out: the trained student.
        steps: optimizer steps done in all.
        before, after: the student against the held-out cache, or None without one.
        history: what was logged, one entry a step or evaluation.
        seconds: of this run, evaluations and checkpoints included.
        notes: what the user should know about the pair of student and cache.
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
    """The measurements in a log: (step, metrics)."""
    return [(entry["step"], Metrics.from_flat(entry, "eval_")) for entry in history if "eval_kl" in entry]
