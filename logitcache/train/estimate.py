"""Memory and time of a training run by formula, before the student's weights are read.

``docs/explanation/memory-and-time.md`` explains each formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from logitcache.errors import LogitCacheError
from logitcache.losses.base import SparseLoss
from logitcache.losses.fused import chunk_rows
from logitcache.losses.mix import parts_of
from logitcache.losses.registry import resolve
from logitcache.models import build_empty
from logitcache.models.cost import (
    Arithmetic,
    Estimate,
    activation_bytes,
    estimate_of,
    gib,
    training_operations,
    working_bytes,
)
from logitcache.models.dtypes import DTYPES
from logitcache.models.hardware import Hardware
from logitcache.models.sizes import Sizes, sizes_of
from logitcache.students.adapters import empty_adapter
from logitcache.students.files import find_student
from logitcache.train.arguments import micro_batch_size
from logitcache.train.config import TrainConfig
from logitcache.train.lora import prepare_student

#: Bytes of one entry of a target on the device, most devices that are proposed, and the rank of proposed adapters.
_ENTRY_BYTES, _MOST_DEVICES, _LORA_RANK = 12, 1_024, 16


@dataclass(frozen=True)
class Shape:
    """What a run's memory depends on beside the student's sizes.

    Attributes:
        rows, row_tokens: of one forward pass on one device.
        arithmetic: see :data:`logitcache.models.cost.Arithmetic`.
        masked, eager: how attention is computed.
        checkpointing: activations are computed again in the backward pass.
        dense: the loss reads every id.
        top_k: entries of a target.
        ranks: data-parallel processes.
        sharded: they share weights, gradients and optimizer state.
        device_memory: bytes of one device, by which the loss chooses its chunks; None for a CPU.
    """

    rows: int
    row_tokens: int
    arithmetic: Arithmetic
    masked: bool
    eager: bool
    checkpointing: bool
    dense: bool
    top_k: int
    ranks: int
    sharded: bool
    device_memory: int | None


def student_sizes(config: TrainConfig) -> Sizes:
    """How large the student is, and what of it is trained.

    Raises:
        ModelError, ConfigError, MissingDependencyError: as when it is loaded, as far as its configuration tells.
    """
    files = find_student(config.student)
    whole = files.base or files
    model = build_empty("student", whole.name, whole.place, dtype=DTYPES[config.dtype], **whole.load_kwargs())
    if files.base is not None:
        model = empty_adapter(model, files)
    return sizes_of(prepare_student(model, config))


def shape_of(config: TrainConfig, hardware: Hardware, row_tokens: int, top_k: int) -> Shape:
    """The shape of a run on some devices; ``row_tokens`` is the length of its longest row."""
    trainer, dense = config.trainer, not all(isinstance(loss, SparseLoss) for _, loss in _parts(config))
    in_fsdp = trainer.get("fsdp_config") if isinstance(trainer.get("fsdp_config"), dict) else {}
    again = (trainer.get("gradient_checkpointing"), trainer.get("activation_checkpointing"))
    attention = config.attention or ""
    return Shape(
        rows=micro_batch_size(config, hardware.devices),
        row_tokens=row_tokens,
        arithmetic=_arithmetic(config, hardware),
        masked=config.pack_tokens is not None and "flash" not in attention,
        eager=attention == "eager",
        checkpointing=any(again) or bool((in_fsdp or {}).get("activation_checkpointing")),
        dense=dense,
        top_k=top_k,
        ranks=hardware.devices,
        sharded=bool(trainer.get("fsdp")),
        device_memory=hardware.memory,
    )


def _parts(config: TrainConfig) -> Any:
    return parts_of(resolve(config.loss, **config.loss_options))


def _arithmetic(config: TrainConfig, hardware: Hardware) -> Arithmetic:
    if config.dtype != "fp32":
        return "half"
    chosen: str = config.mixed_precision
    if chosen == "auto":  # bf16 on a GPU
        chosen = "no" if hardware.memory is None else "bf16"
    return "fp32" if chosen == "no" else "mixed"


def estimate_training(
    config: TrainConfig, sizes: Sizes, shape: Shape, hardware: Hardware, step_tokens: float, mean_tokens: float
) -> Estimate:
    """What the run takes on each device, whether it fits, and how fast it can be at most.

    Args:
        config, sizes, shape, hardware: the run.
        step_tokens: tokens of an optimizer step, over all devices.
        mean_tokens: of a row.
    """
    operations = step_tokens * training_operations(
        sizes, mean_tokens, dense=shape.dense, checkpointing=shape.checkpointing
    )
    estimate = estimate_of(memory_of(sizes, shape), sizes, hardware, operations)
    if estimate.fits is not False:
        return estimate
    return estimate.advised(*_advice(config, sizes, shape, hardware))


def memory_of(sizes: Sizes, shape: Shape) -> dict[str, int]:
    """Bytes on one device, by part: the most that live at once, as if all parts were largest together."""
    shards = shape.ranks if shape.sharded else 1
    tokens = shape.rows * shape.row_tokens
    kept = activation_bytes(
        sizes,
        shape.arithmetic,
        shape.row_tokens,
        masked=shape.masked,
        eager=shape.eager,
        checkpointing=shape.checkpointing,
    )
    memory = {
        "weights": sizes.weight_bytes // shards,
        "gradients": sizes.trained_bytes // shards,
        "optimizer": (2 * sizes.trained_bytes + 4 * sizes.trained_tensors) // shards,
        "half-precision copies": sizes.cast_bytes if shape.arithmetic == "mixed" and not shape.sharded else 0,
        "communication": _communication(sizes, shape),
        "activations": tokens * (kept + working_bytes(sizes, shape.arithmetic)),
        "output layer": _output_bytes(sizes, shape, tokens),
    }
    return {part: amount for part, amount in memory.items() if amount}


def _communication(sizes: Sizes, shape: Shape) -> int:
    """What wrappers keep: DDP a copy of the gradients, FSDP two whole blocks and all that is outside of blocks."""
    if shape.ranks == 1:
        return 0
    if not shape.sharded:
        return sizes.trained_bytes
    value_bytes = 4 if shape.arithmetic == "fp32" else 2
    return value_bytes * (2 * sizes.block_parameters + sizes.outer_parameters)


def _output_bytes(sizes: Sizes, shape: Shape, tokens: int) -> int:
    """The loss's chunk of logits, the head's gradient until it is added, hidden states and targets."""
    head = sizes.vocab_size * sizes.width
    chunk = min(tokens, chunk_rows(sizes.vocab_size, shape.device_memory))
    logits = (4 if shape.dense else 2) * 4 * chunk * sizes.vocab_size
    copy = 2 * head if shape.arithmetic == "mixed" else 0
    gradient = 4 * head if sizes.trained == sizes.parameters else 0
    return logits + copy + gradient + tokens * (8 * sizes.width + _ENTRY_BYTES * shape.top_k)


def _advice(config: TrainConfig, sizes: Sizes, shape: Shape, hardware: Hardware) -> list[str]:
    """The first change that is enough: fewer rows, then checkpointing, then both; else more devices, or LoRA."""

    def told(words: str, sizes: Sizes, shape: Shape) -> str | None:
        found = estimate_of(memory_of(sizes, shape), sizes, hardware, 1.0)
        return f"{words} ({gib(found.total)})" if found.fits else None

    again: Literal[True] = True
    fewer = [shape.rows >> halved for halved in range(1, shape.rows.bit_length())]
    with_checkpointing = "--trainer activation_checkpointing=true"
    tried = [(f"--micro-batch-size {rows}", replace(shape, rows=rows)) for rows in fewer]
    if not shape.checkpointing:
        tried.append((with_checkpointing, replace(shape, checkpointing=again)))
        tried += [
            (f"{with_checkpointing} --micro-batch-size {rows}", replace(shape, rows=rows, checkpointing=again))
            for rows in fewer
        ]
    for words, changed in tried:
        if found := told(words, sizes, changed):
            return [found]
    least = replace(shape, rows=1, checkpointing=again)
    flags = f"{with_checkpointing} --micro-batch-size 1"
    advice = [_shard(least, sizes, flags, told), _adapters(config, least, flags, told)]
    return list(filter(None, advice)) or [f"rows shorter than {shape.row_tokens:,} tokens, or a smaller student"]


def _shard(shape: Shape, sizes: Sizes, flags: str, told: Any) -> str | None:
    """The least number of devices, a power of two, that hold the student together."""
    ranks = 2
    while ranks <= _MOST_DEVICES:
        if found := told(
            f"share it among {ranks} such devices: --trainer fsdp=true {flags}",
            sizes,
            replace(shape, ranks=ranks, sharded=True),
        ):
            return str(found)
        ranks *= 2
    return None


def _adapters(config: TrainConfig, shape: Shape, flags: str, told: Any) -> str | None:
    """LoRA on weights in half precision, if that is possible here and enough."""
    if config.lora_rank is not None:
        return None
    changed = config.model_copy(update={"lora_rank": _LORA_RANK, "dtype": "bf16"})
    try:
        sizes = student_sizes(changed)
    except LogitCacheError:  # such as PEFT not being installed; it is only a proposal
        return None
    found = told(
        f"train adapters: --lora-rank {_LORA_RANK} --dtype bf16 {flags}", sizes, replace(shape, arithmetic="half")
    )
    return None if found is None else str(found)
