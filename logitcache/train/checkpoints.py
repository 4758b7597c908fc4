"""Checkpoints: complete only if their marker file exists, and valid only for the same cache and settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from logitcache.errors import ResumeMismatchError
from logitcache.utils.atomic import sync_file, write_atomically

MARKER = "logitcache.json"


def complete(
    checkpoint: Path, state: dict[str, Any], settings: dict[str, Any], components: list[dict[str, Any]]
) -> None:
    """Mark a checkpoint as complete: its files are synced first, the marker comes last.

    ``components`` describes the caches of a mixture, for people who read the marker.
    """
    for path in checkpoint.rglob("*"):
        if path.is_file():
            sync_file(path)
    content = {"state": state, "settings": settings, **({"caches": components} if components else {})}
    write_atomically(checkpoint / MARKER, json.dumps(content, indent=2) + "\n")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def all_checkpoints(directory: Path) -> list[Path]:
    """Every checkpoint, complete or not, oldest first."""
    found = [path for path in directory.glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=step_of)


def newest(directory: Path) -> Path | None:
    """The newest complete checkpoint."""
    done = [path for path in all_checkpoints(directory) if (path / MARKER).is_file()]
    return done[-1] if done else None


def rotate(directory: Path, keep: int) -> None:
    """Remove all checkpoints except the newest ``keep`` complete ones, and incomplete ones that are newer."""
    found = all_checkpoints(directory)
    done = [path for path in found if (path / MARKER).is_file()]
    kept = done[-keep:]
    for path in found:
        if path not in kept and kept and step_of(path) <= step_of(kept[-1]):
            # The marker is removed first: if the process is killed here, the rest doesn't look complete.
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def read_state(checkpoint: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The stream's state in a checkpoint that was written with the same settings.

    Raises:
        ResumeMismatchError: a setting that changes the result differs; the message names it.
    """
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        state, then = marker["state"], marker["settings"]
    except (ValueError, KeyError) as error:
        raise ResumeMismatchError(
            f"{checkpoint / MARKER} can't be read: remove {checkpoint} to use the one before"
        ) from error
    for name, value in settings.items():
        if then.get(name) != value:
            raise ResumeMismatchError(
                f"{name} was {then.get(name)!r} when the run was started and is {value!r} now: "
                "resume with the same settings, or start a new run in another directory"
            )
    assert isinstance(state, dict)
    return state
