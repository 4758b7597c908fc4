"""In which precision a run computes: what the settings say, or else what suits the device."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from logitcache.errors import LogitCacheWarning
from logitcache.models.dtypes import DTYPES
from logitcache.train.config import TrainConfig
from logitcache.utils.device import DEVICES, Devices, local_device


def gpu(config: TrainConfig, devices: Devices = DEVICES) -> torch.device | None:
    """The GPU of NVIDIA or AMD that this process trains on; None if it trains on something else."""
    on_cpu = config.trainer.get("use_cpu") or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return None if on_cpu or not devices.count("cuda") else local_device("cuda", devices)


def with_precision(config: TrainConfig, devices: Devices = DEVICES) -> TrainConfig:
    """The settings with the arithmetic that ``auto`` stands for on this device.

    That is bfloat16 where a GPU computes in it by itself and the weights are float32, so that they and the optimizer
    keep small updates. Elsewhere the arithmetic is that of the weights.
    """
    if config.mixed_precision != "auto":
        return config
    device = gpu(config, devices)
    half = device is not None and config.dtype == "fp32" and devices.has_bf16(device)
    return config.model_copy(update={"mixed_precision": "bf16" if half else "no"})


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The arithmetic of the run for what runs the student outside the Trainer; the settings' own, not ``auto``."""
    half = config.mixed_precision in ("bf16", "fp16")
    return torch.autocast(device.type, DTYPES[config.mixed_precision if half else "bf16"], enabled=half)


def uses_tf32(config: TrainConfig, devices: Devices = DEVICES) -> bool:
    """True if products that stay float32 run in TF32: by default where the GPU has it."""
    device = gpu(config, devices)
    if device is None:
        return False
    wanted = config.trainer.get("tf32")
    return has_tf32(device) if wanted is None else bool(wanted)


def has_tf32(device: torch.device) -> bool:
    """True for GPUs of NVIDIA since Ampere."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device)[0] >= 8


def describe_precision(config: TrainConfig, devices: Devices = DEVICES) -> str:
    """One line for the plan and the report."""
    config = with_precision(config, devices)
    compute = config.dtype if config.mixed_precision == "no" else config.mixed_precision
    told = f"{compute} arithmetic, {config.dtype} weights"
    return f"{told}, TF32 for float32 products" if uses_tf32(config, devices) else told


def warn_of_half_weights(student: Any, config: TrainConfig) -> None:
    """Warn if weights that are trained are held in half precision, and nothing holds a wider copy of them."""
    # DeepSpeed keeps float32 copies, and so does FSDP under mixed precision.
    wide_copy = config.trainer.get("deepspeed") or (config.trainer.get("fsdp") and config.mixed_precision != "no")
    trained = {value.dtype for value in student.parameters() if value.requires_grad}
    half = sorted(str(dtype).removeprefix("torch.") for dtype in trained & {torch.bfloat16, torch.float16})
    if half and not wide_copy:
        warnings.warn(
            f"the weights that are trained are {half[0]}, which loses small updates: keep them float32 (--dtype fp32), "
            "and compute in half precision with --mixed-precision bf16",
            LogitCacheWarning,
            stacklevel=2,
        )
