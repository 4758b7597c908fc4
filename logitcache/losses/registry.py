"""Losses by name, and the line of text that names one loss or a weighted mix of several."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, TypeVar

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
from logitcache.utils.registry import Registry

_AnyLoss = TypeVar("_AnyLoss", bound=Loss)

#: Packages offer losses by entry points of this group; each names a subclass of :class:`Loss`.
GROUP = "logitcache.losses"
_NAME = re.compile(r"\w+")


def _check(name: str, loss: Any) -> type[Loss]:
    if not (isinstance(loss, type) and issubclass(loss, Loss) and hasattr(loss, "__dataclass_fields__")):
        raise ConfigError(f"a loss is a dataclass that inherits from logitcache.losses.Loss, and this is {loss!r}")
    if getattr(loss, "name", None) != name or not _NAME.fullmatch(name):
        raise ConfigError(f"the class's own name is {getattr(loss, 'name', None)!r}; a name is letters, digits and _")
    if lacking := sorted(getattr(loss, "__abstractmethods__", ())):
        raise ConfigError(f"{loss.__name__} lacks the method {lacking[0]}")
    for field in dataclasses.fields(loss):  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING:
            raise ConfigError(f"its setting {field.name} has no default")
    return loss


_LOSSES: Registry[type[Loss]] = Registry("loss", GROUP, _check)
# name, optional (settings), optional =weight
_PART = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<settings>[^()]*)\))?\s*(?:=\s*(?P<weight>[^,()\s]+))?\s*")
_SYNTAX = 'write it like "bild", "bild=1.0,cross_entropy=0.1" or "bild(k=8,temperature=3)=1.0"'


def register(loss: type[_AnyLoss]) -> type[_AnyLoss]:
    """Make another loss known to ``get``, ``parse``, ``linear_loss`` and ``lc.train``; also a decorator of its class.

    An installed package needs no call: it names the class by an entry point of the group ``logitcache.losses``, under
    the loss's own name.

    Args:
        loss: a frozen dataclass that inherits from :class:`Loss`; its ``name`` must not be taken. Its fields are the
            settings; each has a default, and ``__post_init__`` refuses values that are not allowed.

    Raises:
        ConfigError: the name is taken, or the class can't be a loss.
    """
    _LOSSES.register(getattr(loss, "name", ""), loss)
    return loss


def names() -> list[str]:
    """The names of all losses for ``get``, ``parse`` and ``linear_loss``, with those of installed packages."""
    return _LOSSES.names()


def parameters(name: str) -> dict[str, Any]:
    """A loss's settings and their defaults.

    Raises:
        ConfigError: there is no loss of this name.
    """
    return {field.name: field.default for field in dataclasses.fields(_LOSSES.get(name))}  # type: ignore[arg-type]


def describe(name: str) -> str:
    """A loss's documentation: its formula, and what it assumes if the targets are truncated.

    Raises:
        ConfigError: there is no loss of this name.
    """
    return (_LOSSES.get(name).__doc__ or "").strip()


def get(name: str, **params: Any) -> Loss:
    """A loss by name, with its settings; a setting that isn't given has its default (see ``parameters``).

    The result is a function ``fn(student_logits [N, V], targets, labels=None) -> [N]``; see ``Loss``.

    Raises:
        ConfigError: there is no such loss or setting, or the value isn't allowed.
    """
    loss, allowed = _LOSSES.get(name), parameters(name)
    for field in params:
        if field not in allowed:
            known = ", ".join(allowed) or "none"
            raise ConfigError(f"loss {name} has no setting {field!r}; it has: {known}")
    return loss(**params)


def parse(spec: str) -> Loss:
    """A loss, or a weighted mix, from a line of text: ``bild``, ``bild=1.0,cross_entropy=0.1``, ``bild(k=4)=2,tvd=1``.

    Settings are in parentheses after the name, the weight (by default 1) after an equals sign.

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
    """A loss from a name with settings, from a line of text, or from a loss, which is returned unchanged.

    Raises:
        ConfigError: there is no such loss or setting, or settings are given with a loss object.
    """
    if isinstance(loss, str):
        return get(loss, **params) if params or loss in _LOSSES.names() else parse(loss)
    if params:
        raise ConfigError(f"{', '.join(params)}: a loss object takes no more settings")
    return loss


def _settings(text: str, spec: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        field, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"loss {spec!r}: {item!r} is not a setting; {_SYNTAX}")
        if field.strip() in settings:
            raise ConfigError(f"loss {spec!r}: the setting {field.strip()!r} is given twice")
        settings[field.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> int | float | str:
    """A number if the text is one, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


for _loss in (
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
):
    register(_loss)
