"""Turn logitcache's settings into ``transformers.TrainingArguments``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch

from logitcache.errors import ConfigError, MissingDependencyError
from logitcache.stream import Layout
from logitcache.train.config import TrainConfig
from logitcache.train.precision import uses_tf32
from logitcache.train.processes import several
from logitcache.utils.reasons import reason

#: Directory of the checkpoints, inside ``out``.
CHECKPOINTS = "checkpoints"


def training_arguments(config: TrainConfig, layout: Layout, epoch_steps: Sequence[int], *, resumes: bool) -> Any:
    """Logitcache's settings, and those of ``trainer``, as ``transformers.TrainingArguments``.

    Args:
        config: all settings.
        layout: how global batches are divided over ranks and micro-batches.
        epoch_steps: optimizer steps of each epoch.
        resumes: True if the run continues from a checkpoint.

    Raises:
        ConfigError: a field of ``trainer`` doesn't exist, or has a value that the Trainer refuses; or the Trainer would
            divide each batch over several GPUs of this process.
        MissingDependencyError: ``trainer.deepspeed`` is set, and deepspeed isn't installed.
    """
    from transformers import TrainingArguments

    known = {field.name for field in fields(TrainingArguments) if field.init}
    for name in config.trainer:
        if name not in known:
            raise ConfigError(f"trainer.{name} is not a field of transformers.TrainingArguments")
    if config.trainer.get("deepspeed") and find_spec("deepspeed") is None:
        raise MissingDependencyError("trainer.deepspeed needs DeepSpeed: pip install deepspeed")
    try:
        arguments = TrainingArguments(**argument_values(config, layout, epoch_steps, resumes=resumes))
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"transformers refuses the settings: {reason(error)}") from error
    if arguments.n_gpu > 1:
        raise ConfigError(several(arguments.n_gpu))
    return arguments


def argument_values(
    config: TrainConfig, layout: Layout, epoch_steps: Sequence[int], *, resumes: bool
) -> dict[str, Any]:
    """What ``TrainingArguments`` is given. Arguments as in :func:`training_arguments`."""
    max_steps, first_epoch = config.max_steps or sum(epoch_steps), max(1, epoch_steps[0])
    every = first_epoch if config.checkpoint_every is None else config.checkpoint_every
    values = {
        "output_dir": str(config.out / CHECKPOINTS),
        "remove_unused_columns": False,
        "per_device_train_batch_size": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.parts,
        "max_steps": max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": round(config.warmup * max_steps),
        "weight_decay": config.weight_decay,
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "ignore_data_skip": True,
        "eval_strategy": "no" if config.eval_cache is None else "steps",
        "eval_steps": config.eval_every or first_epoch,
        "eval_on_start": config.eval_cache is not None and not resumes,
        "save_strategy": "steps" if every else "no",
        "save_steps": every or 1,
        "logging_strategy": "steps",
        "logging_steps": config.log_every,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        # The Trainer takes bf16 on a CPU only if it is told that a CPU is meant.
        "use_cpu": config.mixed_precision == "bf16" and not torch.accelerator.is_available(),
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        "tf32": uses_tf32(config) or None,
        "report_to": "none",
        **config.trainer,
    }
    if isinstance(asked := config.trainer.get("parallelism_config"), dict):
        from accelerate.parallelism_config import ParallelismConfig

        values["parallelism_config"] = ParallelismConfig(**asked)
    return values


def micro_batch_size(config: TrainConfig, world_size: int) -> int:
    """Rows of one forward pass on one rank; by default the rank's rows of a step, at most 8."""
    return config.micro_batch_size or min(8, -(-config.batch_size // world_size))
