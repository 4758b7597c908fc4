"""A sample of the tail: a few ids from outside the top, drawn so that they represent the whole tail without bias.

Ids are drawn by systematic sampling with probability proportional to size, without repetition. An id of mass p is drawn
with probability min(1, p / τ), and then gets the weight max(p, τ): the expected weight of every id is p. τ is the
threshold at which exactly M ids are drawn. It is not stored: the M weights must add up to the mass of the whole tail.
(Sampling the teacher for an unbiased gradient: "Sparse Logit Sampling", arXiv 2503.16870. There ids are drawn with
repetition and from the whole distribution; here the top is kept, and only the rest is sampled.)

Shape legend: N positions, V ids of the vocabulary, K entries of which the last M are drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

# An id this close to the threshold is certain to be drawn; else rounding could draw it twice.
_CERTAIN = 1 - 1e-4


def draw_tail(logits_NV: Tensor, ids_NK: Tensor, drawn: int, draws_N: Tensor) -> Tensor:
    """Replace the last ``drawn`` of each row's top ids by ids drawn from all ids below the others.

    Args:
        logits_NV: float32 or float64, not changed; a constant for each row may be added.
        ids_NK: int64, the ids of the K largest logits, in descending order.
        drawn: M, below K.
        draws_N: float64 in [0, 1), one random number for each row; equal numbers give equal ids.

    Returns:
        int64 ``[N, K]``, in descending order of logit, without repetition.
    """
    ranked_NR, next_NM = ids_NK[:, :-drawn], ids_NK[:, -drawn:]
    largest_N1 = logits_NV.gather(1, next_NM[:, :1])
    masses_NV = (logits_NV - torch.where(largest_N1.isfinite(), largest_N1, 0)).exp_().scatter_(1, ranked_NR, 0)
    certain_N1 = _count_certain(masses_NV, next_NM)
    places_M = torch.arange(drawn, device=ids_NK.device)
    is_certain_NM = places_M < certain_N1
    masses_NV.scatter_(1, next_NM, masses_NV.gather(1, next_NM).masked_fill(is_certain_NM, 0))
    below_NV = masses_NV.cumsum(1, dtype=torch.float64)
    wanted_N1 = drawn - certain_N1
    # A little below 1, so that no point is rounded up to the total.
    shift_N1 = draws_N.to(below_NV)[:, None].clamp(0, 1 - 2.0**-32)
    points_NM = (shift_N1 + places_M) / wanted_N1.clamp_min(1) * below_NV[:, -1:]
    # The first id whose running total passes the point; such an id has a mass above 0.
    found_NM = torch.searchsorted(below_NV, points_NM, right=True).clamp_max(logits_NV.shape[1] - 1)
    sure_NM = next_NM.gather(1, (places_M - wanted_N1).clamp_min(0))
    drawn_NM = torch.where(places_M < wanted_N1, found_NM, sure_NM).sort(1).values
    by_value_NM = logits_NV.gather(1, drawn_NM).sort(dim=1, descending=True, stable=True).indices
    return torch.cat([ranked_NR, drawn_NM.gather(1, by_value_NM)], 1)


def _count_certain(masses_NV: Tensor, next_NM: Tensor) -> Tensor:
    """``[N, 1]``: how many of ``next_NM``, the largest ids of the tail, are certain to be drawn."""
    values_NM = masses_NV.gather(1, next_NM).double()
    beyond_N1 = masses_NV.scatter(1, next_NM, 0).sum(1, keepdim=True, dtype=torch.float64)
    certain_NM = values_NM >= _thresholds(values_NM, beyond_N1) * _CERTAIN
    return certain_NM.long().cumprod(1).sum(1, keepdim=True)


def _thresholds(values_NM: Tensor, beyond_N1: Tensor) -> Tensor:
    """τ ``[N, M]`` if the first 0, 1, … M − 1 ids are certain: the mass left, over the number of ids still to draw."""
    left_NM = values_NM.flip(1).cumsum(1).flip(1) + beyond_N1
    return left_NM / torch.arange(values_NM.shape[1], 0, -1, device=values_NM.device)


def log_weights(logprobs_NM: Tensor, residual_N: Tensor) -> Tensor:
    """Log of the weight ``[N, M]`` of each drawn id, in nats.

    Args:
        logprobs_NM: log-probs of the drawn ids, in descending order.
        residual_N: log of the mass of all ids that are neither drawn nor ranked.
    """
    tail_N1 = torch.logaddexp(logprobs_NM.logsumexp(1), residual_N)[:, None]
    level_N1 = torch.where(tail_N1 > -torch.inf, tail_N1, 0)
    values_NM = (logprobs_NM - level_N1).exp()
    thresholds_NM = _thresholds(values_NM, (residual_N[:, None] - level_N1).exp())
    # The first threshold that the next id doesn't exceed; the last one is never exceeded.
    first_N1 = (values_NM <= thresholds_NM).to(torch.uint8).argmax(1, keepdim=True)
    return torch.maximum(logprobs_NM, level_N1 + thresholds_NM.gather(1, first_N1).log())
