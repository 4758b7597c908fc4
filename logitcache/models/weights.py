"""Check that a checkpoint gave a model all weights in the right shape, and warn of tensors that were not loaded."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from logitcache.errors import LogitCacheWarning, ModelError


def check_loaded(what: str, name: str, model: Any, found: dict[str, Any]) -> None:
    """Refuse a model if not all of its weights are from its files.

    Args:
        what, name: the model, for messages.
        model: as loaded.
        found: what ``from_pretrained`` returns with ``output_loading_info``.

    Raises:
        ModelError: a weight of the model is not in the files, has another shape there, or the files hold more layers,
            or a weight or bias of a loaded module, that the model doesn't have.
    """
    if found.get("error_msgs"):
        raise ModelError(f"{what} {name}: its weights can't be loaded: {str(found['error_msgs'][0]).strip()[:300]}")
    mismatched = sorted(found.get("mismatched_keys", ()))
    if mismatched:
        shown = [f"{key} is {list(has)} and not {list(wants)}" for key, has, wants in mismatched]
        raise ModelError(f"{what} {name}: weights have another shape than config.json says: {_some(shown)}")
    unexpected = set(found.get("unexpected_keys", ()))
    if missing := sorted(found.get("missing_keys", ())):
        instead = f"; they hold {_some(sorted(unexpected))}, which the model has no place for" if unexpected else ""
        raise ModelError(f"{what} {name}: its files lack weights of the model: {_some(missing)}{instead}")
    _check_unread(what, name, model, unexpected)


def _check_unread(what: str, name: str, model: Any, unexpected: Collection[str]) -> None:
    """Refuse a weight or bias that the configuration rules out; warn of other tensors that the model doesn't have.

    Raises:
        ModelError: a loaded module lacks a weight or bias of the files, or the files hold more layers.
    """
    modules, prefixes = dict(model.named_modules()), Counter[str]()
    _check_more_layers(what, name, modules, unexpected)
    buffers = {key.rsplit(".", 1)[-1] for key, _ in model.named_buffers()}
    for key in sorted(unexpected):
        parent, _, leaf = key.rpartition(".")
        if parent in modules and leaf in ("weight", "bias") and list(modules[parent].parameters(recurse=False)):
            raise ModelError(
                f"{what} {name}: its files hold {key}, and config.json says that there is none: the configuration is "
                "of another model"
            )
        if leaf not in buffers:
            prefixes[_first_unknown(key, modules)] += 1
    if prefixes:
        parts = _some([f"{prefix} ({count})" for prefix, count in prefixes.items()])
        warnings.warn(
            f"{what} {name}: {sum(prefixes.values())} tensors of its files have no place in a {type(model).__name__} "
            f"and were left unread: {parts}",
            LogitCacheWarning,
            stacklevel=2,
        )


def _check_more_layers(what: str, name: str, modules: dict[str, nn.Module], unexpected: Collection[str]) -> None:
    """Refuse files with more layers of the model's kind. (Layers that predict several tokens have other weights.)

    Raises:
        ModelError: there are such layers.
    """
    beyond: dict[str, set[str]] = defaultdict(set)
    for key in unexpected:
        prefix = _first_unknown(key, modules)
        if isinstance(modules.get(prefix.rpartition(".")[0]), nn.ModuleList):
            beyond[prefix].add(key.removeprefix(f"{prefix}."))
    further = []
    for prefix, names in beyond.items():
        kinds = [set(layer.state_dict()) for layer in modules[prefix.rpartition(".")[0]].children()]
        if not kinds or any(names == kind for kind in kinds):
            further.append(prefix)
    if further:
        raise ModelError(
            f"{what} {name}: its files hold more layers than config.json says ({_some(sorted(further))}): correct the "
            "number of layers there; `logitcache student` makes a smaller model"
        )


def _first_unknown(key: str, modules: Collection[str]) -> str:
    """The shortest prefix of a tensor's name that no module of the model has."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        if (prefix := ".".join(parts[:end])) not in modules:
            return prefix
    return key


def _some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
