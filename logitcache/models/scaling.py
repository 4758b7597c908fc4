"""Find out how a model turns the raw logits of its output layer into logits, by comparing both on a few tokens.

If a setting in the configuration explains a scale or a cap, its exact value is used.

Shape legend: T tokens, V ids that the model has logits for, W rows of its output layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from logitcache.models.finish import Finish
from logitcache.models.probe import difference, same

# A measured factor counts as a setting's value if it differs by at most this share, which allows for rounding.
_ROUNDING = {False: 1e-5, True: 2e-3}


def explain(raw_TW: Tensor, own_TV: Tensor, config: Any, *, half: bool, tolerance: float) -> Finish | None:
    """Find the scale, cap and dropped rows that turn raw logits into the model's own; None if there are none.

    Args:
        raw_TW: logits of the output layer.
        own_TV: logits of the model.
        config: its configuration.
        half: the logits are less precise than float32.
        tolerance: of the comparison, as a share of the logits' standard deviation.
    """
    rows, vocab_size = raw_TW.shape[-1], own_TV.shape[-1]
    if rows < vocab_size or raw_TW.shape[:-1] != own_TV.shape[:-1]:
        return None
    kept = None if rows == vocab_size else vocab_size
    raw_TW, own_TV = raw_TW.double(), own_TV.double().to(raw_TW.device)
    settings = dict(_numbers(config.to_dict()))
    for caps in _caps(settings):
        fitting = []
        for cap in caps:
            if cap is not None and bool(own_TV.abs().max() > cap * (1 + 1e-2)):
                continue
            candidate = Finish(_scale(raw_TW[..., :vocab_size], own_TV, cap, settings, half), cap, kept)
            ours_TV = candidate.of(raw_TW)
            if same(ours_TV, own_TV, tolerance=tolerance):
                fitting.append((difference(ours_TV, own_TV), candidate))
        # A large cap changes small logits less than rounding does. If several caps fit, the first is taken: those that
        # a setting names as caps come first.
        if fitting:
            least = min(error for error, _ in fitting)
            return next(candidate for error, candidate in fitting if error <= 2 * least + 1e-9)
    return None


def _caps(settings: dict[str, float]) -> tuple[list[float | None], list[float | None]]:
    """Caps to try: first the settings that are called soft caps, and no cap; then all other settings."""
    named = {name: value for name, value in settings.items() if "softcap" in name or "soft_cap" in name}
    of_logits = [value for name, value in named.items() if "attn" not in name and "attention" not in name]
    return [*dict.fromkeys(of_logits), None], [*dict.fromkeys(settings.values())]


def _scale(raw: Tensor, own: Tensor, cap: float | None, settings: dict[str, float], half: bool) -> float:
    """The factor between the two by least squares; if a setting's value or its inverse is near, that value."""
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
    """Every positive number of a configuration and its parts, by name, except for token ids."""
    for name, value in config.items():
        if not isinstance(name, str):
            continue  # names of labels by number
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 and "token" not in name:
            yield f"{prefix}{name}", float(value)
