"""Which implementation of attention a student is trained with: what was asked for, or else what suits the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitcache.errors import ConfigError, ModelError
from logitcache.models import device_of, evaluating, find_head, without_adapter
from logitcache.models.documents import BY_DOCUMENT, register
from logitcache.models.probe import half, same, vocabulary
from logitcache.train.config import TrainConfig
from logitcache.utils.reasons import reason

# Flash attention, newest first, each with the function of transformers.utils that says whether it is installed.
_FLASH = {"flash_attention_3": "is_flash_attn_3_available", "flash_attention_2": "is_flash_attn_2_available"}
# The largest difference of hidden states that another order of sums may cause, as a share of their spread.
_TOLERANCE = {False: 1e-3, True: 0.05}


def at_loading(config: TrainConfig) -> str | None:
    """What a student is loaded with. It is tried on the CPU first, where flash attention doesn't run."""
    return None if config.attention is None or _is_flash(config.attention) else config.attention


def choose_attention(student: Any, config: TrainConfig, device: torch.device) -> str:
    """Set a student's attention for training, after it was checked on the CPU.

    Without ``attention`` in the settings it is flash attention on a GPU, if that is installed, the student has it, and
    the run computes in half precision. On a CPU, rows that are packed get attention by document. Otherwise it stays
    what the student was loaded with: transformers' choice, mostly sdpa.

    Returns:
        transformers' name of what is used.

    Raises:
        ConfigError: ``attention`` asks for flash attention, which isn't installed or which the student lacks.
    """
    model, _ = without_adapter(student)
    if config.attention is not None and _is_flash(config.attention):
        try:
            model.set_attn_implementation(config.attention)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"attention = {config.attention} can't be used: {reason(error)}") from error
        if not _is_flash(_name(model)):
            raise ConfigError(f"attention = {config.attention} can't be used: {type(model).__name__} can't be switched")
    elif config.attention is None and device.type == "cuda" and "fp32" not in _arithmetic(config):
        _try_flash(model)
    elif config.attention is None and device.type == "cpu" and config.pack_tokens is not None:
        _try_by_document(model)
    return _name(model)


def _arithmetic(config: TrainConfig) -> str:
    """The type that attention computes in."""
    return config.dtype if config.mixed_precision in ("no", "auto") else config.mixed_precision


def _name(model: Any) -> str:
    return str(getattr(model.config, "_attn_implementation", ""))


def _is_flash(name: str) -> bool:
    return "flash" in name


def _try_flash(model: Any) -> None:
    from transformers import utils

    for name, available in _FLASH.items():
        if getattr(utils, available, lambda: False)():
            try:
                model.set_attn_implementation(name)
            except (ValueError, ImportError):  # the student has no such attention
                continue
            return


def _try_by_document(model: Any) -> None:
    """Attention by document, if the student's values stay the same."""
    before = _name(model)
    # As under flash attention, what a layer doesn't see must be told to it and not stand in a mask alone. A few tokens
    # would not show chunks of thousands.
    told = getattr(model, "_supports_flash_attn", False) and not getattr(model.config, "attention_chunk_size", None)
    if before != "sdpa" or not told:
        return
    register()
    try:
        expected = _probe(model)
        model.set_attn_implementation(BY_DOCUMENT)
        agrees = all(
            same(found, wanted, tolerance=_TOLERANCE[half(model)])
            for found, wanted in zip(_probe(model), expected, strict=True)
        )
    except (ModelError, ValueError, ImportError, AttributeError, KeyError, AssertionError):  # it can't be switched
        agrees = False
    if not agrees and _name(model) != before:
        model.set_attn_implementation(before)


@torch.no_grad()
def _probe(model: Any) -> list[Tensor]:
    """Hidden states of two packed rows with padding, and of two rows of one document each."""
    head, device = find_head(model), device_of(model)
    packed_BT = torch.tensor([[*range(5), *range(9), 0, 0], [*range(1), *range(12), *range(3)]], device=device)
    ids_BT = torch.arange(1, packed_BT.numel() + 1, device=device).view_as(packed_BT) % vocabulary(model)
    counted_BT = torch.arange(packed_BT.shape[1], device=device).expand_as(packed_BT)
    with evaluating(model):
        return [head.hidden(ids_BT, position_ids=positions).float() for positions in (packed_BT, counted_BT)]
