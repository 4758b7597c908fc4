"""A few tokens that a model is tried on, and when two of its answers count as the same.

Shape legend: T tokens of the probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from logitcache.models.head import device_of

_LENGTH = 12
# Logits beyond are no numbers that a model computed: half precision's lowest value, or float32's.
_RULED_OUT = 6e4


def probe_ids(model: Any) -> Tensor:
    """``[T]`` token ids, different ones where the vocabulary allows, none of them special to the model.

    Special are all that the configuration names: a placeholder of an image would ask for the image.
    """
    special = set(_special(model.config.to_dict()))
    plain = [word for word in range(1, min(vocabulary(model), 4096)) if word not in special] or [0]
    length = min(_LENGTH, longest(model.config) or _LENGTH)
    # Not neighbours in order: a model that shifts or sorts its input would answer them alike.
    chosen = [plain[(5 * place + place * place) % len(plain)] for place in range(length)]
    return torch.tensor(chosen, device=device_of(model))


def longest(config: Any) -> int | None:
    """How many tokens a model takes at most; None where the configuration names no limit."""
    try:
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    except NotImplementedError:  # XLNet's says so when asked
        return None
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def vocabulary(model: Any) -> int:
    """How many ids the model takes."""
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
    """True if the model computes in less than float32, or its weights are quantised."""
    return any(value.dtype not in (torch.float32, torch.float64) for value in model.parameters())


def difference(one: Tensor, two: Tensor) -> float:
    """The mean distance of two tensors of one shape, where both are numbers; 0 if nowhere."""
    one, two = one.float(), two.float().to(one.device)
    both = _number(one) & _number(two)
    return float((one - two)[both].abs().mean()) if both.any() else 0.0


def spread(values: Tensor) -> float:
    """The standard deviation of those that are numbers; never 0."""
    numbers = values.float()[_number(values.float())].double()
    return max(float(numbers.std()), 1e-3) if numbers.numel() > 1 else 1e-3


def same(ours: Tensor, own: Tensor, *, tolerance: float) -> bool:
    """True if no value differs by more than a share of the spread, and the same ones are no numbers."""
    ours, own = ours.float().to(own.device), own.float()
    if ours.shape != own.shape:
        return False
    numbers = _number(own)
    if not torch.equal(numbers, _number(ours)):
        return False
    if not numbers.any():
        return True  # broken weights: whoever uses the logits reports them by position
    return bool((ours - own)[numbers].abs().max() < tolerance * spread(own))


def _number(values: Tensor) -> Tensor:
    """Models rule out ids by the lowest value of the dtype, as well as by −inf."""
    return torch.isfinite(values) & (values.abs() < _RULED_OUT)
