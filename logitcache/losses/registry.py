"""Losses by name, and the line of text that names one loss or a weighted mix of several."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Any

from logitcache.errors import ConfigError
from logitcache.losses.base import Loss
from logitcache.losses.bild import SLD, TLD, BiLD
from logitcache.losses.cross_entropy import CrossEntropy
from logitcache.losses.dkd import DKD
from logitcache.losses.forward_kl import ForwardKL
from logitcache.losses.jsd import JSD
from logitcache.losses.mix import Mix
from logitcache.losses.nkd import NKD
from logitcache.losses.normkd import NormKD
from logitcache.losses.residual_kl import ResidualKL
from logitcache.losses.reverse_kl import ReverseKL
from logitcache.losses.top_kl import TopKL
from logitcache.losses.tvd import TVD

_LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        BiLD,
        TLD,
        SLD,
        CrossEntropy,
        ForwardKL,
        ReverseKL,
        ResidualKL,
        TopKL,
        JSD,
        TVD,
        DKD,
        NKD,
        NormKD,
    )
}
# name, optional (settings), optional =weight
_PART = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<settings>[^()]*)\))?\s*(?:=\s*(?P<weight>[^,()\s]+))?\s*")
_SYNTAX = 'write it like "bild", "bild=1.0,cross_entropy=0.1" or "bild(k=8,temperature=3)=1.0"'


def names() -> list[str]:
    """The name of every loss, as ``get``, ``parse`` and ``linear_loss`` take it."""
    return list(_LOSSES)


def parameters(name: str) -> dict[str, Any]:
    """A loss's settings and their defaults.

    Raises:
        ConfigError: there is no loss of this name.
    """
    return {field.name: field.default for field in dataclasses.fields(_find(name))}  # type: ignore[arg-type]


def describe(name: str) -> str:
    """A loss's documentation: its formula, and what it assumes where the targets are truncated."""
    return (_find(name).__doc__ or "").strip()


def get(name: str, **params: Any) -> Loss:
    """A loss by name, with its settings; those not given take their defaults (see ``parameters``).

    The result is a function ``fn(student_logits [N, V], targets, labels=None) -> [N]``; see ``Loss``.

    Raises:
        ConfigError: there is no such loss or setting, or the value isn't allowed.
    """
    loss, allowed = _find(name), parameters(name)
    for field in params:
        if field not in allowed:
            known = ", ".join(allowed) or "none"
            raise ConfigError(f"loss {name} has no setting {field!r}; it has: {known}")
    return loss(**params)


def parse(spec: str) -> Loss:
    """A loss, or a weighted mix, from a line of text: ``bild``, ``bild=1.0,cross_entropy=0.1``, ``bild(k=4)=2,tvd=1``.

    Settings go in parentheses behind the name, the weight (1 if left out) behind an equals sign.

    Raises:
        ConfigError: the text isn't of this form, or ``get`` would refuse a part of it.
    """
    parts: list[tuple[float, Loss]] = []
    position = 0
    while position <= len(spec):
        match = _PART.match(spec, position)
        if match is None or (match.end() < len(spec) and spec[match.end()] != ","):
            raise ConfigError(f"loss {spec!r} can't be read; {_SYNTAX}")
        position = match.end() + 1
        weight = _value(match["weight"] or "1")
        if isinstance(weight, str) or not 0 <= weight < math.inf:
            raise ConfigError(f"loss {spec!r}: the weight {weight!r} of {match['name']} must be a number, 0 or above")
        parts.append((float(weight), get(match["name"], **_settings(match["settings"] or "", spec))))
    if not any(weight for weight, _ in parts):
        raise ConfigError(f"loss {spec!r} weighs nothing: give at least one part a weight above 0")
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    return Mix(tuple(parts))


def resolve(loss: str | Loss, **params: Any) -> Loss:
    """A loss from a name with settings, a line of text, or a loss that is one already."""
    if isinstance(loss, str):
        return get(loss, **params) if params or loss in _LOSSES else parse(loss)
    if params:
        raise ConfigError(f"{', '.join(params)}: a loss that is built already takes no more settings")
    return loss


def _settings(text: str, spec: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        field, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"loss {spec!r}: {item!r} is no setting; {_SYNTAX}")
        if field.strip() in settings:
            raise ConfigError(f"loss {spec!r}: the setting {field.strip()!r} stands there twice")
        settings[field.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> int | float | str:
    """A number if it reads as one, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _find(name: str) -> type[Loss]:
    if name not in _LOSSES:
        close = difflib.get_close_matches(name, _LOSSES, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"there is no loss {name!r}; {hint}choose from {', '.join(_LOSSES)}")
    return _LOSSES[name]
