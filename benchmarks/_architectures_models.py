"""Tiny random models with weights that spread, saved as a user's would be, and what they say of one row at a time.

Shape legend: L tokens of a row, V words.
"""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._architectures_configs import FIRST_MARK, model_type_of, tiny_config

# Logits with about this deviation: a wrong context then changes log-probs by whole nats.
_SPREAD = 2.5
# Of linear layers: attention that prefers some tokens, and layers that add as much as they are given.
_GAIN = 2.0


class CantBuildError(Exception):
    """transformers can't make, save or load this architecture here; the text says why."""


def build(name: str, directory: Path, seed: int = 0) -> Any:
    """Make a tiny model of an architecture, save it in ``directory`` and load it again.

    Raises:
        CantBuildError: at any of these, or the loaded one isn't the one that was saved.
    """
    torch.manual_seed(seed)
    try:
        model = _automatic(model_type_of(name)).from_config(tiny_config(name)).eval()
        _spread(model)
    except Exception as error:
        raise CantBuildError(_first_line("can't be made", error)) from error
    try:
        model.save_pretrained(directory)
        loaded = load(directory, type(model))
    except Exception as error:
        raise CantBuildError(_first_line("can't be saved and loaded again", error)) from error
    if changed := _changed(model, loaded):
        raise CantBuildError(f"transformers loads other weights than it saved: {changed}")
    return loaded


def load(directory: Path, kind: Any) -> Any:
    """What ``save_pretrained`` wrote, in evaluation mode, float32."""
    return kind.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def row_logits(model: Any, token_ids_L: Tensor) -> Tensor:
    """``[L, V]``: the model's own forward pass over one row, nothing else given."""
    extra = {"use_cache": False} if "use_cache" in inspect.signature(type(model).forward).parameters else {}
    logits: Tensor = model(input_ids=token_ids_L[None], **extra).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def rounding(model: Any, token_ids_L: Tensor) -> float:
    """How far the log-probs of one row in float32 are from those in float64, in nats."""
    own = row_logits(model, token_ids_L).log_softmax(1)
    exact = row_logits(copy.deepcopy(model).double(), token_ids_L).log_softmax(1)
    return float((own - exact).abs().max())


@torch.no_grad()
def looks_ahead(model: Any, token_ids_L: Tensor) -> float:
    """How far logits over a row's first half change when the second half is cut off, in nats."""
    half = len(token_ids_L) // 2
    whole, cut = row_logits(model, token_ids_L)[:half], row_logits(model, token_ids_L[:half])
    return float((whole.log_softmax(1) - cut.log_softmax(1)).abs().max())


@torch.no_grad()
def context_matters(model: Any, token_ids_L: Tensor) -> float:
    """How far another token in the middle of a row changes the log-probs after it, in nats."""
    middle, other = len(token_ids_L) // 2, token_ids_L.clone()
    other[middle] += 1 if other[middle] < 100 else -1
    own, changed = row_logits(model, token_ids_L)[middle + 1 :], row_logits(model, other)[middle + 1 :]
    return float((own.log_softmax(1) - changed.log_softmax(1)).abs().max())


def _automatic(model_type: str) -> Any:
    """The automatic class of transformers for a model type; the one for image and text where it knows the type, too."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    mappings = {
        "AutoModelForImageTextToText": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForMultimodalLM": auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    }
    name = next(name for name, mapping in mappings.items() if model_type in mapping)
    return getattr(transformers, name)


@torch.no_grad()
def _spread(model: Any) -> None:
    """Random weights of about unit gain, biases and gates that aren't zero, and logits that differ by some nats."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        known = torch.where(torch.isfinite(parameter) & (parameter.abs() < 1e3), parameter, 0)
        if parameter.dim() < 2:
            parameter.copy_(known + 0.15 * torch.randn_like(parameter))
        else:
            fan_in = 1 if id(parameter) in embeddings else _fan_in(parameter)
            gain = 1.0 if id(parameter) in embeddings else _GAIN
            parameter.copy_(gain * torch.randn_like(parameter) / math.sqrt(fan_in))
    model.tie_weights()
    output = model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    if weight is None:
        return
    ids = torch.arange(10, 42) * 7 % FIRST_MARK
    for _ in range(3):
        try:
            logits_LV = row_logits(model, ids)
        except Exception:  # noqa: BLE001  # it doesn't run on text alone; whoever uses it will say so
            return
        found = logits_LV[logits_LV > -1e4].std()  # some ids may never come next
        weight.mul_(_SPREAD / float(found.clamp(min=1e-3)))


def _fan_in(weight: Tensor) -> int:
    """Numbers that add up in one output; experts' weights have their number in front."""
    experts = weight.dim() == 3 and weight.shape[0] <= 16 and min(weight.shape[1:]) > 8
    return max(weight.shape[1:]) if experts else weight[0].numel()


def _changed(saved: Any, loaded: Any) -> str:
    """The first parameter that isn't the same in both, with how many there are; empty if none."""
    ours, theirs = dict(saved.named_parameters()), dict(loaded.named_parameters())
    changed = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    return f"{changed[0]} and {len(changed) - 1} more" if changed else ""


def _first_line(what: str, error: Exception) -> str:
    """The error's first line, and the next where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{what}: {type(error).__name__}: {text[:200]}"
