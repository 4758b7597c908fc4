"""Describe a run before it starts: its memory and time by formula, and then all checks if the student fits here."""

from __future__ import annotations

import os
from typing import Any

import torch

from logitcache.errors import ModelError
from logitcache.models.cost import Estimate
from logitcache.models.hardware import Hardware, hardware_at_hand
from logitcache.models.sizes import Sizes
from logitcache.models.teacher import choose_device
from logitcache.stream import Stream
from logitcache.train import run
from logitcache.train.arguments import micro_batch_size
from logitcache.train.config import TrainConfig
from logitcache.train.estimate import estimate_training, shape_of, student_sizes
from logitcache.train.source import Source

_UNCHECKED = "the student's weights and tokenizer were not read, so they are not checked against the cache"


def plan(config: TrainConfig, hardware: Hardware | None = None) -> dict[str, Any]:
    """Describe a run, with its memory and time. Nothing is written.

    The student is loaded and checked, except if it doesn't fit, or if the plan is for devices of another machine.

    Args:
        config: the run.
        hardware: devices of another machine to plan for; by default those of this machine.

    Raises:
        LogitCacheError: as :func:`logitcache.train`.
    """
    run.check_settings(config)
    try:
        sizes = student_sizes(config)
    except ModelError:
        if hardware is not None:
            raise
        return run.plan(config) | {"estimate": None}  # it may still load, or else this says why it doesn't
    source = Source.open(config)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = config.trainer.get("use_cpu")
    hardware = hardware or hardware_at_hand(torch.device("cpu") if on_cpu else choose_device("auto"), ranks)
    limit = min(sizes.vocab_size, source.first.vocab_size)
    stream = source.stream(config, micro_batch_size(config, hardware.devices), limit)
    estimate = _estimate(config, source, stream, sizes, hardware)
    if hardware.elsewhere or estimate.fits is False:
        return _without_student(config, source, stream, sizes) | {"estimate": estimate}
    return run.plan(config) | {"estimate": estimate}


def _estimate(config: TrainConfig, source: Source, stream: Stream, sizes: Sizes, hardware: Hardware) -> Estimate:
    steps, mean = stream.steps(0), _mean_row(config, source)
    shape = shape_of(config, hardware, _longest_row(config, source), max(cache.top_k for cache in source.caches))
    return estimate_training(config, sizes, shape, hardware, stream.epoch_tokens / max(steps, 1), mean)


def _longest_row(config: TrainConfig, source: Source) -> int:
    """Tokens of the longest row, from the caches' manifests or lengths."""
    if config.pack_tokens is not None:
        return config.pack_tokens
    longest = 1
    for cache in source.caches:
        known = cache.manifest.provenance.max_length
        if known is None:
            known = max(int(cache.read_lengths(shard).max(initial=0)) for shard in range(len(cache.shards)))
        longest = max(longest, known)
    return min(longest, config.max_length or longest)


def _mean_row(config: TrainConfig, source: Source) -> float:
    totals = [cache.manifest.totals for cache in source.caches]
    mean = sum(total.tokens for total in totals) / max(1, sum(total.sequences for total in totals))
    return config.pack_tokens or mean


def _without_student(config: TrainConfig, source: Source, stream: Stream, sizes: Sizes) -> dict[str, Any]:
    """The part of a plan that needs only the caches and the student's configuration."""
    components = source.components(stream)
    epochs = 1 if config.max_steps else config.epochs
    return {
        "cache": stream.cache.digest,
        **({"caches": components} if components else {}),
        "sequences": stream.plan(0).order.samples,
        "tokens": stream.epoch_tokens,
        "optimizer_steps": config.max_steps or sum(stream.steps(epoch) for epoch in range(epochs)),
        "steps_per_epoch": stream.steps(0),
        "parameters": sizes.parameters,
        "trained_parameters": sizes.trained,
        "resumes_from": None,
        "notes": [_UNCHECKED],
    }
