"""What FSDP is told beyond the Trainer's defaults, and which checkpoints it can go on from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from logitcache.errors import ConfigError, ResumeMismatchError

#: How FSDP can write weights into checkpoints: put together in one file, or each rank its own part.
FULL, SHARDED = "FULL_STATE_DICT", "SHARDED_STATE_DICT"
_RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def adjust(plugin: Any) -> None:
    """Let losses and metrics leave the module as they are, and gradients be summed over ranks in float32.

    accelerate's policy rounds both to half precision: a loss of 2.34567 would come out as 2.34375.

    Args:
        plugin: accelerate's ``FullyShardedDataParallelPlugin``.

    Raises:
        ConfigError: a form of checkpoints that can't be put together again.
    """
    form = form_of(plugin)
    if form not in (FULL, SHARDED):
        raise ConfigError(f"fsdp_config.state_dict_type = {form} is not supported; it must be {FULL} or {SHARDED}")
    policy = plugin.mixed_precision_policy
    if plugin.fsdp_version == 2 and policy is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None, reduce_dtype=torch.float32)


def form_of(plugin: Any | None) -> str:
    """How a run writes weights into its checkpoints: FSDP's name for it; empty without FSDP."""
    return "" if plugin is None else str(plugin.state_dict_type.name)


def check_checkpoint(checkpoint: Path, plugin: Any | None) -> None:
    """Refuse a checkpoint that is in another form than this run reads.

    Raises:
        ResumeMismatchError: it is; the message says what to set.
    """
    wanted, has = form_of(plugin), _form_in(checkpoint)
    if wanted == has:
        return
    needed = f"set trainer.fsdp and fsdp_config.state_dict_type = {has}" if has else "leave out trainer.fsdp"
    raise ResumeMismatchError(
        f"{checkpoint} was written {f'by FSDP as {has}' if has else 'without FSDP'}, and this run reads "
        f"{wanted or 'checkpoints without FSDP'}: to resume, {needed}"
    )


def _form_in(checkpoint: Path) -> str:
    from transformers.trainer import FSDP_MODEL_NAME

    if (checkpoint / f"{FSDP_MODEL_NAME}.bin").is_file():
        return FULL
    return SHARDED if (checkpoint / f"{FSDP_MODEL_NAME}_0").is_dir() else ""


@contextmanager
def all_ranks_load() -> Iterator[None]:
    """Every rank reads the student's weights, whatever an earlier run of this process told transformers.

    With ``cpu_ram_efficient_loading`` it would leave them empty on all ranks but the first, and the checks of the
    student run on every rank. FSDP sends them from the first one later all the same.
    """
    before = os.environ.get(_RAM_EFFICIENT)
    os.environ[_RAM_EFFICIENT] = "false"
    try:
        yield
    finally:
        os.environ.pop(_RAM_EFFICIENT)
        if before is not None:
            os.environ[_RAM_EFFICIENT] = before
