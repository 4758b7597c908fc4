"""Descriptors: one small file in the scratch directory for each finished shard, written after the shard."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logitcache.format.table import ShardEntry
from logitcache.utils.atomic import write_file
from logitcache.utils.files import SCRATCH_DIR, storage_error


@dataclass(frozen=True)
class Descriptor:
    """The record of one finished shard of the plan.

    Attributes:
        entry: its row in the shard table; None if no position of the shard had finite logits.
        vocab_size: V, the length of the teacher's logit vectors.
        non_finite: positions left out because their logits weren't finite.
        mean_mass: mean probability that the K entries hold; None without targets.
        calibration: errors of the encoding, measured on the first shard only.
        head_dtype: dtype of the logits, if it isn't that of the teacher's arithmetic.
    """

    entry: ShardEntry | None
    vocab_size: int
    non_finite: int
    mean_mass: float | None
    calibration: dict[str, Any] | None = None
    head_dtype: str | None = None


def descriptor_name(index: int) -> str:
    """Path of a shard's descriptor, relative to the output. A directory has up to 1000."""
    return f"{SCRATCH_DIR}/done/{index // 1000:05d}/{index:08d}.json"


def write_descriptor(root: Path, index: int, descriptor: Descriptor) -> None:
    """Record that a shard is published.

    Raises:
        StorageError: the system refused.
    """
    write_file(root, descriptor_name(index), json.dumps(asdict(descriptor)).encode())


def read_descriptor(root: Path, index: int) -> Descriptor | None:
    """The record of a shard; None if the shard isn't finished, or the record or the shard is damaged.

    Raises:
        StorageError: the system refused.
    """
    path = root / descriptor_name(index)
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        if value["entry"] is None:
            return Descriptor(**value)
        entry = ShardEntry(**value.pop("entry"))
        if (root / entry.path).stat().st_size != entry.bytes:
            return None
        return Descriptor(entry=entry, **value)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        raise storage_error("read", path, error) from error
