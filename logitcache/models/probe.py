"""A few token ids to check a model with, and a comparison of two of its outputs.

Shape legend: T tokens of the probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from logitcache.models.head import device_of

_LENGTH = 12
# Larger values are not computed: models set them to rule out ids, such as the lowest value of half precision.
_LARGEST_LOGIT = 6e4


def probe_ids(model: Any) -> Tensor:
    """``[T]`` token ids, all different if the vocabulary is large enough, without special ones.

    All ids that the configuration names are special: for example, a placeholder for an image would need the image.
    """
    special = set(_special(model.config.to_dict()))
    plain = [token for token in range(1, min(vocabulary(model), 4096)) if token not in special] or [0]
    length = min(_LENGTH, longest(model.config) or _LENGTH)
    # Not in ascending order: with such ids, a model that shifts or sorts its input could give the same output.
    chosen = [plain[(5 * place + place * place) % len(plain)] for place in range(length)]
    return torch.tensor(chosen, device=device_of(model))


def longest(config: Any) -> int | None:
    """The most tokens that a model takes; None if the configuration names no limit."""
    try:
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    except NotImplementedError:  # XLNet's raises this
        return None
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def vocabulary(model: Any) -> int:
    """The number of token ids that the model takes."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return int(model.config.get_text_config().vocab_size)


def _special(config: dict[Any, Any]) -> Iterator[int]:
    """Every id that a configuration or a part of it names: ``pad_token_id``, ``image_token_index``, …"""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special(value)
        elif isinstance(name, str) and "token" in name:
            yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))


def half(model: Any) -> bool:
    """True if the model computes in half precision, or its weights are quantised."""
    return any(value.dtype not in (torch.float32, torch.float64) for value in model.parameters())


def difference(one: Tensor, two: Tensor) -> float:
    """The mean distance of two tensors of one shape, over entries that are numbers in both; 0 if there are none."""
    one, two = one.float(), two.float().to(one.device)
    both = _is_number(one) & _is_number(two)
    return float((one - two)[both].abs().mean()) if both.any() else 0.0


def spread(values: Tensor) -> float:
    """The standard deviation of the entries that are numbers; at least 1e-3."""
    numbers = values.float()[_is_number(values.float())].double()
    return max(float(numbers.std()), 1e-3) if numbers.numel() > 1 else 1e-3


def same(ours: Tensor, own: Tensor, *, tolerance: float) -> bool:
    """True if no entry differs by more than ``tolerance`` · ``spread(own)``, and the same ones are numbers."""
    ours, own = ours.float().to(own.device), own.float()
    if ours.shape != own.shape:
        return False
    numbers = _is_number(own)
    if not torch.equal(numbers, _is_number(ours)):
        return False
    if not numbers.any():
        return True  # broken weights: their positions are reported later
    return bool((ours - own)[numbers].abs().max() < tolerance * spread(own))


def _is_number(values: Tensor) -> Tensor:
    """Where values are numbers. Models rule out ids by the lowest value of the dtype as well as by −inf."""
    return torch.isfinite(values) & (values.abs() < _LARGEST_LOGIT)
