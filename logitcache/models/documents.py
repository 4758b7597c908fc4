"""Attention within each document of a row, without a mask over the whole row.

transformers' ``sdpa`` and ``eager`` build a ``[B, 1, T, T]`` mask for packed rows. Flash attention needs none, but runs
on a GPU only. This implementation runs everywhere: each document is one call of torch's attention.

Shape legend: B rows, T tokens of a row, L tokens of all rows, H heads, E width of a head, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

#: The name under which transformers finds it once :func:`register` was called.
BY_DOCUMENT = "logitcache_by_document"
# What some models ask of their attention, and this one doesn't do.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "cache", "head_mask")


def register() -> None:
    """Make the implementation known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(BY_DOCUMENT, attend)
    AttentionMaskInterface.register(BY_DOCUMENT, _mask)


def document_lengths(starts_D1: Tensor | None, position_ids: Tensor | None, rows: int, width: int) -> list[int]:
    """Tokens of each document, for rows laid end to end.

    Args:
        starts_D1: ``[D + 1]``: where each document begins, and the number of all tokens; None if it isn't known.
        position_ids: ``[B, T]`` or ``[1, T]``, 0 at the first token of each document; used if there are no starts.
    """
    if starts_D1 is None:
        if position_ids is None or position_ids.shape[-1] != width or position_ids.ndim != 2:
            return [width] * rows
        begins_BT = (position_ids == 0).expand(rows, width).clone()
        begins_BT[:, 0] = True
        starts_D1 = torch.cat([begins_BT.flatten().nonzero()[:, 0], torch.tensor([rows * width])])
    return starts_D1.diff().tolist()


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention that stays within documents; called by transformers.

    Args:
        module: the model's attention.
        query, key, value: ``[B, H, T, E]``; key and value may have fewer heads.
        attention_mask: None, or a mask over padding, under which rows count as one document each.
        sliding_window: a token sees so many tokens, itself included; None: all before it.
        position_ids, cu_seq_lens_q: where documents begin, see :func:`document_lengths`.

    Raises:
        NotImplementedError: the model asks for something else of its attention.
    """
    if wanted := [name for name in _UNKNOWN if others.get(name) is not None]:
        raise NotImplementedError(f"attention by document has no {wanted[0]}")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal) or query.shape[2] != key.shape[2]:
        raise NotImplementedError("attention by document is causal, and has no cache")
    if attention_mask is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling)
    rows, heads, width, _ = query.shape
    lengths = document_lengths(cu_seq_lens_q, position_ids, rows, width)
    pieces = list(_pieces(lengths, merged=not dropout))
    wide = heads // key.shape[1]
    parts = zip(
        pieces,
        *(
            torch.split(_end_to_end(each), [size for size, _ in pieces], dim=2)
            for each in (query, key.repeat_interleave(wide, dim=1), value.repeat_interleave(wide, dim=1))
        ),
        strict=True,
    )
    found = [
        part_value if alone else _within(part_query, part_key, part_value, dropout, scaling, sliding_window)
        for (_, alone), part_query, part_key, part_value in parts
    ]
    return torch.cat(found, dim=2)[0].transpose(0, 1).reshape(rows, width, heads, value.shape[3]), None


def _pieces(lengths: list[int], *, merged: bool) -> Iterator[tuple[int, bool]]:
    """Documents as (tokens, False). Those of one token, which see only themselves, are merged: (how many, True)."""
    for one, run in groupby(lengths, key=lambda length: length == 1):
        if one and merged:
            yield sum(run), True
        else:
            yield from ((length, False) for length in run)


def _end_to_end(value_BHTE: Tensor) -> Tensor:
    """``[1, H, L, E]``: the rows one after the other."""
    return value_BHTE.transpose(0, 1).flatten(1, 2)[None]


def _within(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention in one document, all ``[1, H, tokens, E]``."""
    length = query.shape[2]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
    place = torch.arange(length, device=query.device)
    back = place[:, None] - place
    return scaled_dot_product_attention(
        query, key, value, attn_mask=(back >= 0) & (back < window), dropout_p=dropout, scale=scaling
    )


def _mask(attention_mask: Tensor | None = None, **others: Any) -> Tensor | None:
    """No mask, unless there is padding to be masked."""
    if attention_mask is None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(attention_mask=attention_mask, **others)
