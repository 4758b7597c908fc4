"""Read rows of data sets with the `datasets` package: saved in a directory, or on a hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logitcache.data.files.arrow_rows import as_text, check_stream_end
from logitcache.data.files.sources import HubId, Row
from logitcache.errors import DataError, MissingDependencyError
from logitcache.utils.reasons import reason

_SHOWN_SUBSETS = 20


def read_saved(path: Path, name: str, split: str) -> Iterator[Row]:
    """Read the rows of a directory that ``save_to_disk`` wrote. ``split`` is used only if it has several splits.

    Raises:
        DataError: it can't be loaded, one of its files is cut off, or there is no such split.
        MissingDependencyError: `datasets` isn't installed.
    """
    datasets = _datasets(name)
    for file in sorted(path.rglob("*.arrow")):
        check_stream_end(file, str(file))
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"data set {name} can't be loaded: {reason(error)}") from error
    if isinstance(rows, dict):
        if split not in rows:
            raise DataError(f"data set {name} has no split {split!r}; it has {', '.join(rows)}")
        rows = rows[split]
    yield from _plain(rows, name)


def read_hub(hub: HubId, name: str, split: str) -> Iterator[Row]:
    """Stream the rows of a split of a data set on a hub.

    Raises:
        DataError: it can't be loaded. If a subset must be chosen, the message names the subsets.
        MissingDependencyError: `datasets` isn't installed.
    """
    datasets = _datasets(name)
    try:
        rows = datasets.load_dataset(hub.repo, hub.subset, revision=hub.revision, split=split, streaming=True)
    except Exception as error:
        advice = _subset_advice(datasets, hub) if isinstance(error, ValueError) else None
        raise DataError(f"data set {name} can't be loaded: {advice or reason(error)}") from error
    yield from _plain(rows, name)


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(f"reading {name} needs datasets: pip install 'logitcache[datasets]'") from error
    return datasets


def _plain(rows: Any, name: str) -> Iterator[Row]:
    number = 0
    try:
        for row in rows:
            number += 1
            yield {column: _text_in(value) for column, value in row.items()}
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name} can't be read after row {number}: {reason(error)}") from error


def _text_in(value: Any) -> Any:
    """A value whose bytes, at any depth, are text where they are UTF-8."""
    if isinstance(value, list):
        return [_text_in(item) for item in value] if value and not isinstance(value[0], int | float) else value
    if isinstance(value, dict):
        return {key: _text_in(item) for key, item in value.items()}
    return as_text(value)


def _subset_advice(datasets: Any, hub: HubId) -> str | None:
    """A message that names the subsets, if one must be chosen or the chosen one doesn't exist; else None."""
    try:
        subsets = datasets.get_dataset_config_names(hub.repo, revision=hub.revision)
        default = datasets.get_dataset_default_config_name(hub.repo, revision=hub.revision)
    except Exception:  # noqa: BLE001 - then the first error is reported
        return None
    if hub.subset in subsets or (hub.subset is None and default is not None):
        return None
    shown = ", ".join(subsets[:_SHOWN_SUBSETS]) + (", …" if len(subsets) > _SHOWN_SUBSETS else "")
    missing = f"there is no subset {hub.subset!r}" if hub.subset else "it has several subsets"
    return f"{missing}; write {hub.repo}:SUBSET with one of {shown}"
