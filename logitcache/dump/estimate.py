"""Memory and time of a dump by formula, before the teacher's weights are read.

``docs/explanation/memory-and-time.md`` explains each formula.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from logitcache.dump.plan import Plan
from logitcache.dump.settings import Job
from logitcache.engines.batch_size import tokens_that_fit
from logitcache.engines.output_layer import chunk_bytes
from logitcache.models import build_empty
from logitcache.models.cost import Estimate, estimate_of, forward_bytes, forward_operations, gib
from logitcache.models.dtypes import DTYPES
from logitcache.models.hardware import Hardware
from logitcache.models.sizes import Sizes, sizes_of

#: A chunk's logits, and at most as much for top-k, log-sum-exp and statistics.
_CHUNK_COPIES = 2
#: Of one stored entry while targets are on the device: an id of 8 bytes and a log-prob of 4.
_ENTRY_BYTES = 12
_MOST_DEVICES = 1_024


def teacher_sizes(job: Job) -> Sizes:
    """How large the teacher is in the dump's arithmetic; quantised weights by their files.

    Raises:
        ModelError: it can't be built from its configuration.
    """
    config = job.config
    model = build_empty(
        "teacher",
        job.files.name,
        job.files.directory,
        dtype=DTYPES[config.dtype],
        trust_remote_code=config.trust_remote_code,
        **job.files.load_kwargs(),
    )
    sizes = sizes_of(model)
    if getattr(model.config, "quantization_config", None) is None:
        return sizes
    return replace(sizes, weight_bytes=sum(path.stat().st_size for path in job.files.weight_files()))


def fitting_batch(job: Job, sizes: Sizes, hardware: Hardware, asked: int | None) -> Job:
    """The job with the batch size that described devices have room for, where the user didn't ask for one."""
    if asked is not None or hardware.memory is None or not hardware.elsewhere:
        return job
    room = hardware.memory - sizes.weight_bytes // parts_of(job, hardware)
    tokens = tokens_that_fit(room, _Widths(sizes), DTYPES[job.config.dtype].itemsize)
    assert job.config.max_length is not None
    update = {"batch_tokens": max(tokens, job.config.max_length)}
    return replace(job, config=job.config.model_copy(update=update))


def parts_of(job: Job, hardware: Hardware) -> int:
    """Over how many devices the teacher's weights are spread."""
    spread = job.config.tensor_parallel or job.config.device_map is not None
    return max(hardware.devices, job.processes) if spread else 1


def estimate_dump(job: Job, sizes: Sizes, plan: Plan, hardware: Hardware, asked: int | None) -> Estimate:
    """What the dump takes on each device, whether it fits, and how fast it can be at most.

    ``asked`` are the user's tokens of a batch. Without them a batch that doesn't fit will be halved, so it is enough
    that a single sequence fits.
    """
    context = plan.tokens / max(plan.sequences, 1)
    head = 2.0 * sizes.vocab_size * sizes.width * plan.targets / max(plan.tokens, 1)
    operations = forward_operations(sizes, context) + head
    config = job.config
    assert config.batch_tokens is not None
    parts, value_bytes = parts_of(job, hardware), DTYPES[config.dtype].itemsize
    memory = _memory(job, sizes, config.batch_tokens, parts, value_bytes)
    estimate = estimate_of(memory, sizes, hardware, operations)
    if asked is None and estimate.fits is False:
        assert config.max_length is not None
        least = _memory(job, sizes, config.max_length, parts, value_bytes)
        estimate = replace(estimate, fits=estimate_of(least, sizes, hardware, operations).fits)
    if estimate.fits is not False:
        return estimate
    return estimate.advised(*_advice(job, sizes, hardware, operations))


def _memory(job: Job, sizes: Sizes, batch_tokens: int, parts: int, value_bytes: int) -> dict[str, int]:
    """Bytes on one device, by part."""
    config = job.config
    activations = batch_tokens * forward_bytes(sizes.width, sizes.inner, value_bytes)
    if config.attention == "eager":
        assert config.max_length is not None
        activations += batch_tokens * config.max_length * sizes.heads * (4 + value_bytes)
    reference = 0 if job.reference is None else sum(path.stat().st_size for path in job.reference.weight_files())
    chunk = min(chunk_bytes(job.device), 4 * batch_tokens * sizes.vocab_size)
    answers = batch_tokens * sizes.layers * 2 * sizes.key_width * value_bytes if config.generate else 0
    return {
        "weights": _weights(sizes, config.dtype, value_bytes) // parts,
        **({"reference": reference} if reference else {}),
        "activations": activations,
        **({"answers' keys and values": answers} if answers else {}),
        "output layer": _CHUNK_COPIES * chunk
        + batch_tokens * (sizes.width * value_bytes + config.top_k * _ENTRY_BYTES),
    }


def _weights(sizes: Sizes, dtype: str, value_bytes: int) -> int:
    """The weights' bytes, in another dtype than was counted if ``value_bytes`` says so."""
    return sizes.weight_bytes * value_bytes // DTYPES[dtype].itemsize


def _advice(job: Job, sizes: Sizes, hardware: Hardware, operations: float) -> list[str]:
    """The first change that is enough, a smaller batch before half precision before more devices."""
    config, parts = job.config, parts_of(job, hardware)
    assert config.batch_tokens is not None
    assert config.max_length is not None
    value_bytes = DTYPES[config.dtype].itemsize

    def fits(tokens: int, over: int, size: int) -> Estimate | None:
        found = estimate_of(_memory(job, sizes, tokens, over, size), sizes, hardware, operations)
        return found if found.fits else None

    tokens = config.batch_tokens
    while tokens > config.max_length:
        tokens = max(tokens // 2, config.max_length)
        if found := fits(tokens, parts, value_bytes):
            return [f"--batch-tokens {tokens} ({gib(found.total)})"]
    if value_bytes == 4 and (found := fits(tokens, parts, 2)):
        return [f"--dtype bf16 --batch-tokens {tokens} ({gib(found.total)})"]
    over = 2 * parts
    while over <= _MOST_DEVICES:
        if found := fits(tokens, over, 2):
            split = f"torchrun --nproc-per-node {over} … --tensor-parallel --dtype bf16 --batch-tokens {tokens}"
            return [f"split the teacher over {over} such devices: {split} ({gib(found.total)} on each)"]
        over *= 2
    return [f"a shorter --max-length than {config.max_length}, or a smaller or quantised teacher"]


class _Widths:
    """A model's sizes by the names of a transformers configuration."""

    def __init__(self, sizes: Sizes) -> None:
        self.hidden_size: Any = sizes.width
        self.intermediate_size: Any = sizes.inner
