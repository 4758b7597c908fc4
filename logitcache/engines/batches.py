"""Group sequences for forward passes, and pad them to one length.

Shape legend: B sequences of a batch, L tokens of the longest, N positions that have targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data import TokenSequence


def cut_into_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group sequences for forward passes, longest first, with at most ``batch_tokens`` tokens including the padding.

    Returns:
        Lists of indices into ``lengths``. Sequences of nearly equal length share a batch, so there is little padding.
    """
    order = sorted(range(len(lengths)), key=lambda s: (-lengths[s], s))
    batches: list[list[int]] = []
    for s in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(s)
        else:
            batches.append([s])
    return batches


def padded_tokens(lengths: Sequence[int], batch_tokens: int) -> int:
    """Tokens that the batches of some sequences hold, padding included."""
    return sum(len(which) * lengths[which[0]] for which in cut_into_batches(lengths, batch_tokens))


def pad(batch: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
    """``[B, L]`` token ids padded on the right, and the flat indices ``[N]`` of positions that have targets."""
    longest = max(len(sequence.token_ids_L) for sequence in batch)
    input_ids_BL = np.empty((len(batch), longest), dtype=np.int64)
    indices: list[NDArray[np.int64]] = []
    for row, sequence in enumerate(batch):
        length = len(sequence.token_ids_L)
        input_ids_BL[row, :length] = sequence.token_ids_L
        # Any id is right here. Some models warn of their own padding token without a mask, so the last id is repeated.
        input_ids_BL[row, length:] = sequence.token_ids_L[-1]
        indices.append(np.flatnonzero(sequence.target_mask_L) + row * longest)
    return torch.from_numpy(input_ids_BL), torch.from_numpy(np.concatenate(indices))
