"""Check that a student keeps the documents of a packed row separate.

Without an attention mask, transformers separates documents by position ids that start again at 0. Many models respect
them. Others attend, convolve or keep a state across documents, and give no warning.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitcache.errors import ConfigError
from logitcache.models import device_of, evaluating, find_head, without_adapter
from logitcache.models.probe import half, vocabulary

_FIRST, _SECOND = 6, 8
# The largest effect of another document, as a share of its effect when nothing separates them: rounding only.
_LEFT_OVER = {False: 0.01, True: 0.1}  # by whether the student computes in half precision


@torch.no_grad()
def check_packing(student: Any) -> None:
    """Compare a short document after another one in a row with the same document alone.

    Raises:
        ConfigError: the first document changes the student's values for the second.
        ModelError: the student gives no logits for text.
    """
    model, _ = without_adapter(student)
    if "flash" in str(getattr(model.config, "_attn_implementation", "")):
        return  # it separates documents by position ids, and doesn't run on every device
    head = find_head(model)
    if head.alone:
        raise ConfigError(
            f"pack_tokens can't be used: rows of a {type(model).__name__} must run alone; train without it"
        )
    device, length = device_of(model), _FIRST + _SECOND
    ids_T = torch.arange(1, length + 1, device=device) % vocabulary(model)
    counted_T = torch.arange(length, device=device)
    restarted_T = torch.cat([counted_T[:_FIRST], counted_T[:_SECOND]])

    def second(ids: Tensor, positions: Tensor) -> Tensor:
        return head.hidden(ids[None], position_ids=positions[None])[0, -_SECOND:].float()

    with evaluating(model):
        alone = second(ids_T[_FIRST:], counted_T[:_SECOND])
        packed, seen = second(ids_T, restarted_T), second(ids_T, counted_T)
    leak, most = (packed - alone).abs().mean(), (seen - alone).abs().mean()
    if leak > _LEFT_OVER[half(model)] * most:
        raise ConfigError(
            f"pack_tokens can't be used: {type(model).__name__} lets the documents of a row see each other; train "
            "without it"
        )
