"""Teacher values at given ids, and guesses for the ids that the targets don't list.

Shape legend: N positions, V ids in the student's vocabulary, K entries in the targets, C ids asked for.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from logitcache.errors import LogitCacheWarning, TargetsError
from logitcache.losses.divergence import log_probs
from logitcache.targets.tail_sample import log_weights
from logitcache.targets.topk import TopK

# Up to this K, comparing every id with every entry is faster than sorting: [N, C, K] of booleans is small.
_COMPARE_UP_TO = 512


def with_student_tail(targets: TopK, student_NV: Tensor) -> Tensor:
    """Teacher log-probs ``[N, V]``; the residual mass is divided over the ids that aren't listed as in the *student*.

    The mass of the tail is the teacher's; its shape is assumed to be the student's. At temperature 1 a divergence of
    this distribution equals the one with the whole tail as one event, in value and in gradient, so the guess has no
    effect. At other temperatures the shape matters, and the student's shape is the only guess for which a student that
    equals the teacher has loss 0. No gradient flows through the result.
    """
    student_NV = student_NV.detach()
    rest_N = student_NV.scatter(1, targets.ids, -math.inf).logsumexp(1)
    # If teacher or student has no mass in the tail, it is -inf: -inf - -inf would be NaN.
    empty_N = (rest_N == -math.inf) | (targets.residual_logprob == -math.inf)
    shift_N = torch.where(empty_N, -math.inf, targets.residual_logprob - torch.where(empty_N, 0, rest_N))
    return (student_NV + shift_N[:, None]).scatter(1, targets.ids, targets.logprobs)


def represent_tail(targets: TopK, temperature: float) -> Tensor:
    """Log-probs ``[N, K]`` over the entries alone; the sampled ones represent the whole tail. A row adds up to 1.

    At temperature 1 the expectation over samples is the teacher's distribution at every id of the vocabulary. At other
    temperatures this holds in the limit of many samples.
    """
    ranked_NR, drawn_NM = targets.logprobs.tensor_split([targets.ranked], 1)
    # Log of an entry's weight over its own mass; -inf - -inf would be NaN.
    weights_NM = log_weights(drawn_NM, targets.residual_logprob)
    more_NM = torch.where(drawn_NM > -math.inf, weights_NM - drawn_NM, 0)
    return log_probs(torch.cat([ranked_NR / temperature, drawn_NM / temperature + more_NM], 1))


def look_up(targets: TopK, ids_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Teacher log-probs ``[N, C]`` at the ids, and a bool ``[N, C]``: True where the targets list the id.

    Where the second is False, the value is 0 and has no meaning.
    """
    if targets.k <= _COMPARE_UP_TO:
        matches_NCK = ids_NC[:, :, None] == targets.ids[:, None, :]
        found_NC, column_NC = matches_NCK.any(2), matches_NCK.to(torch.uint8).argmax(2)
    else:
        sorted_NK, order_NK = targets.ids.sort(1)
        at_NC = torch.searchsorted(sorted_NK, ids_NC.contiguous()).clamp_max(targets.k - 1)
        found_NC, column_NC = sorted_NK.gather(1, at_NC) == ids_NC, order_NK.gather(1, at_NC)
    return torch.where(found_NC, targets.logprobs.gather(1, column_NC), 0), found_NC


def logit_std(targets: TopK, loss: str) -> Tensor:
    """σ ``[N]`` of the teacher's raw logits: the stored statistic, or computed if every id is listed.

    Raises:
        TargetsError: the targets are truncated and hold no ``logit_std``.
    """
    if targets.logit_std is not None:
        # If the teacher has logits of -inf, σ isn't finite: take σ of its finite entries instead.
        return torch.where(torch.isfinite(targets.logit_std), targets.logit_std, finite_std(targets.logprobs))
    if targets.is_full:
        return finite_std(targets.logprobs)
    raise TargetsError(
        f"{loss} needs the standard deviation of the teacher's logits, which these targets don't hold; "
        "dump again with --statistics, or use a loss that doesn't need it"
    )


def finite_std(logits_NV: Tensor) -> Tensor:
    """The unbiased standard deviation ``[N]`` of each row's finite entries; 0 where there are fewer than two."""
    return finite_variance(logits_NV).sqrt()


def finite_variance(logits_NV: Tensor) -> Tensor:
    """The square of :func:`finite_std`. (Whether all entries are finite isn't asked: a GPU's answer takes time.)"""
    finite_NV = logits_NV > -math.inf
    count_N = finite_NV.sum(1)
    values_NV = torch.where(finite_NV, logits_NV, 0)
    mean_N = values_NV.sum(1) / count_N.clamp_min(1)
    squares_N = torch.where(finite_NV, values_NV - mean_N[:, None], 0).square().sum(1)
    return squares_N / (count_N - 1).clamp_min(1)


def warn_of_tail(targets: TopK, loss: str, temperature: float, *, always: bool = False) -> None:
    """Warn that truncated targets don't determine this loss at this temperature (``always``: at any temperature)."""
    if targets.is_full or (temperature == 1 and not always):
        return
    advice = "Use residual_kl or bild, which don't depend on it" if always else "At temperature 1 it doesn't matter"
    warnings.warn(
        f"{loss} at temperature {temperature:g} depends on the shape of the teacher's tail, which top-{targets.k} "
        f"targets don't hold; the student's shape is assumed. {advice}",
        LogitCacheWarning,
        stacklevel=4,
    )
