"""Train one student for each loss, with the same start, cache, order and settings, and compare them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from logitcache.errors import ConfigError, OutputExistsError
from logitcache.evaluate.measure import Metrics
from logitcache.evaluate.report import draw_comparison
from logitcache.train.config import TrainConfig
from logitcache.train.run import check_settings, train
from logitcache.utils.atomic import write_atomically
from logitcache.utils.progress import Report, silent


def split_losses(text: str) -> list[str]:
    """The parts of ``bild,top_kl(k=8,temperature=2),bild=1+top_kl=0.5``; ``+`` makes a weighted sum.

    Raises:
        ConfigError: a part is empty, or given twice.
    """
    parts = [part.strip().replace("+", ",") for part in re.split(r",(?![^()]*\))", text)]
    if not all(parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"losses = {text!r} is not allowed; give different losses, separated by commas")
    return parts


def train_each(config: TrainConfig, losses: Sequence[str], *, report: Report = silent) -> dict[str, Metrics]:
    """Train one student per loss into directories under ``config.out``, and compare them.

    Args:
        config: the settings; ``loss`` is replaced, and ``eval_cache`` is needed.
        losses: as ``logitcache.losses.parse`` reads them.
        report: called with progress in tokens.

    Returns:
        Metrics on the held-out cache of the start and of each trained student, by name. They are also written to
        ``comparison.json`` and, with matplotlib, ``comparison.png``.

    Raises:
        ConfigError: there is no ``eval_cache``, or a loss is not allowed.
        OutputExistsError: ``out`` exists.
        LogitCacheError: as :func:`logitcache.train` raises.
    """
    if config.eval_cache is None:
        raise ConfigError("comparing losses needs a held-out cache: give --eval-cache")
    if config.out.exists() and any(config.out.iterdir()):
        raise OutputExistsError(f"{config.out} exists: choose another --out, or remove it")
    runs = {
        loss: config.model_copy(update={"loss": loss, "loss_options": {}, "out": config.out / directory_name(loss)})
        for loss in losses
    }
    for run in runs.values():
        check_settings(run)
    results: dict[str, Metrics] = {}
    for loss, run in runs.items():
        result = train(run, report=_labelled(report, loss))
        assert result.before is not None
        assert result.after is not None
        results.setdefault("before", result.before)
        results[loss] = result.after
    _write(config.out, results)
    return results


def directory_name(loss: str) -> str:
    """A loss as a plain directory name."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", loss).strip("-")


def _labelled(report: Report, loss: str) -> Report:
    def labelled(phase: str, done: int, total: int | None, unit: str) -> None:
        report(f"{phase} ({loss})", done, total, unit)

    return labelled


def _write(out: Path, results: dict[str, Metrics]) -> None:
    content = {name: metrics.as_dict() for name, metrics in results.items()}
    write_atomically(out / "comparison.json", json.dumps(content, indent=2) + "\n")
    figure = draw_comparison(results)
    if figure is not None:
        figure.savefig(out / "comparison.png", dpi=150)
