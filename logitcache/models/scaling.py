"""Find out what a model does to the raw logits of its output layer, by comparing the two on a few tokens.

What the configuration explains is taken from there, exactly.

Shape legend: T tokens, V ids that the model answers for, W rows of its output layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from logitcache.models.finish import Finish
from logitcache.models.probe import difference, same

# A factor measured on the probe is a setting's value if it is within this share of it: rounding, no more.
_ROUNDING = {False: 1e-5, True: 2e-3}


def explain(raw_TW: Tensor, own_TV: Tensor, config: Any, *, half: bool, tolerance: float) -> Finish | None:
    """How a model's own logits come from the raw ones; None if not by a scale, a cap and dropped rows.

    Args:
        raw_TW: what the output layer gives.
        own_TV: what the model gives.
        config: its configuration.
        half: the numbers are less precise than float32.
        tolerance: of the comparison, as a share of the logits' spread.
    """
    rows, words = raw_TW.shape[-1], own_TV.shape[-1]
    if rows < words or raw_TW.shape[:-1] != own_TV.shape[:-1]:
        return None
    kept = None if rows == words else words
    raw_TW, own_TV = raw_TW.double(), own_TV.double().to(raw_TW.device)
    settings = dict(_numbers(config.to_dict()))
    for caps in _caps(settings):
        fitting = []
        for cap in caps:
            if cap is not None and bool(own_TV.abs().max() > cap * (1 + 1e-2)):
                continue
            candidate = Finish(_scale(raw_TW[..., :words], own_TV, cap, settings, half), cap, kept)
            ours_TV = candidate.of(raw_TW)
            if same(ours_TV, own_TV, tolerance=tolerance):
                fitting.append((difference(ours_TV, own_TV), candidate))
        # A wide cap changes small logits by less than rounding: of those that fit alike the first, a named one.
        if fitting:
            least = min(error for error, _ in fitting)
            return next(candidate for error, candidate in fitting if error <= 2 * least + 1e-9)
    return None


def _caps(settings: dict[str, float]) -> tuple[list[float | None], list[float | None]]:
    """Settings that are called soft caps, and no cap at all; and for the rest of cases any other setting."""
    named = {name: value for name, value in settings.items() if "softcap" in name or "soft_cap" in name}
    of_logits = [value for name, value in named.items() if "attn" not in name and "attention" not in name]
    return [*dict.fromkeys(of_logits), None], [*dict.fromkeys(settings.values())]


def _scale(raw: Tensor, own: Tensor, cap: float | None, settings: dict[str, float], half: bool) -> float:
    """The factor between the two, by least squares: a setting's value, or one over it, where it is as near as that."""
    if cap is not None:
        inner = own.abs() < 0.95 * cap
        raw, own = raw[inner], torch.atanh(own[inner] / cap) * cap
    usable = torch.isfinite(raw) & torch.isfinite(own) & (own.abs() < 1e30)
    raw, own = raw[usable], own[usable]
    power = float((raw * raw).sum())
    measured = float((raw * own).sum()) / power if power else 1.0
    choices = [1.0, *settings.values(), *(1 / value for value in settings.values())]
    nearest = min(choices, key=lambda value: abs(value - measured))
    return nearest if abs(nearest - measured) <= _ROUNDING[half] * abs(measured) else measured


def _numbers(config: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every positive number of a configuration and its parts, by name; token ids aside."""
    for name, value in config.items():
        if not isinstance(name, str):
            continue  # names of labels by number
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 and "token" not in name:
            yield f"{prefix}{name}", float(value)
