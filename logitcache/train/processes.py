"""One process for each GPU: what is refused before anything is loaded, and what DDP has to look for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from logitcache.errors import ConfigError, LogitCacheWarning
from logitcache.losses import StudentWithLoss
from logitcache.models import evaluating
from logitcache.models.probe import vocabulary
from logitcache.train.config import TrainConfig
from logitcache.train.precision import gpu
from logitcache.train.sharding import adjust
from logitcache.utils.device import DEVICES, Devices

_PROBE_TOKENS = 8


def several_gpus(config: TrainConfig, devices: Devices = DEVICES) -> str | None:
    """One line on what to type if this single process sees several GPUs; None if all is well.

    transformers would split each batch over them (``nn.DataParallel``), and tear targets from their positions.
    """
    # What torchrun, accelerate and DeepSpeed's launcher set.
    if gpu(config, devices) is None or "LOCAL_RANK" in os.environ or (count := devices.count("cuda")) == 1:
        return None
    return several(count)


def several(count: int) -> str:
    """What to type where one process sees so many GPUs."""
    return (
        f"{count} GPUs are visible to one process: start a process for each with `torchrun --nproc-per-node {count} "
        "--no-python logitcache train …`, or train on one of them with CUDA_VISIBLE_DEVICES=0"
    )


def check_processes(config: TrainConfig, devices: Devices = DEVICES) -> None:
    """Refuse a division over processes that training can't follow.

    Raises:
        ConfigError: one process sees several GPUs, or several ranks would have to read the same rows.
    """
    if told := several_gpus(config, devices):
        raise ConfigError(told)
    asked = config.trainer.get("parallelism_config")
    if asked is not None:
        check_parallelism(asked)


def check_parallelism(config: Any) -> None:
    """Refuse tensor, context and sequence parallelism, given as accelerate's ``ParallelismConfig`` or as a mapping.

    Ranks of such a group share their rows, and here every rank reads its own, and gradients are averaged over all.

    Raises:
        ConfigError: one of their sizes is above 1.
    """
    for name in ("tp_size", "cp_size", "sp_size"):
        size = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        if (size or 1) != 1:
            raise ConfigError(
                f"trainer.parallelism_config has {name} = {size}, which is not supported: every rank of a run reads "
                "rows of its own; divide a large student with trainer.fsdp (dp_shard_size, dp_replicate_size)"
            )


def prepare_division(trainer: Any, module: StudentWithLoss) -> None:
    """Tell FSDP or DDP what they need, before either wraps the module.

    Args:
        trainer: the Trainer, with its accelerator; the module is on its device.

    Raises:
        ConfigError: ranks are divided as training can't follow.
    """
    accelerator, args = trainer.accelerator, trainer.args
    check_parallelism(getattr(accelerator, "parallelism_config", None))
    if trainer.fsdp is not None:
        adjust(trainer.fsdp)
        return
    if args.fsdp:
        warnings.warn(
            "trainer.fsdp does nothing on the CPU: accelerate runs DDP there", LogitCacheWarning, stacklevel=2
        )
    if args.world_size > 1 and not trainer.is_deepspeed_enabled and args.ddp_find_unused_parameters is None:
        with accelerator.autocast():
            accelerator.ddp_handler.find_unused_parameters = not reaches_all(module, args.device)


def reaches_all(module: StudentWithLoss, device: torch.device) -> bool:
    """True if a pass over a few tokens reaches every parameter that is trained. All ranks get the first one's answer.

    DDP must search for those that a pass leaves out, or it would wait for their gradients. In a student that
    has none the search costs time at every step.
    """
    found = [not unreached(module, device)]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found)
    return found[0]


@torch.enable_grad()
def unreached(module: StudentWithLoss, device: torch.device) -> list[str]:
    """Names of the parameters that are trained and that a pass over a few tokens does not reach."""
    index_N = torch.arange(_PROBE_TOKENS, device=device)
    with evaluating(module):
        hidden_ND = module.hidden_at((index_N % vocabulary(module.student))[None], index_N[None], index_N)
        reached = {id(leaf) for leaf in _leaves(module.logits(hidden_ND))}
    return [name for name, value in module.named_parameters() if value.requires_grad and id(value) not in reached]


def _leaves(result: Tensor) -> Iterator[Tensor]:
    """The tensors that a backward pass from here gives gradients to. No gradient is computed."""
    waiting, seen = [result.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        waiting.extend(following for following, _ in node.next_functions)
