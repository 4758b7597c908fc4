"""BiLD, the bi-directional logits difference loss, and its two halves (arXiv 2406.13555).

Shape legend: N positions, V ids of the vocabulary, K entries in the targets, k ids a half compares, P = k(k−1)/2 pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcache.errors import ConfigError
from logitcache.losses.base import Selection, SparseLoss, check_count, check_not_negative, check_positive
from logitcache.losses.divergence import kl
from logitcache.losses.estimator import Estimator
from logitcache.losses.tail import look_up
from logitcache.targets.largest import largest_ids
from logitcache.targets.topk import TopK

MISSING = ("bound", "drop")
# How much of an estimate below the bound is used: little if few ids are missing, since ids in a student's top are more
# probable than the estimate says, and more if more ids are missing. The last number is the share of the slope that is
# kept. They were fitted, like the offset and the slope, on other text and students than benchmarks/sld_fidelity.py
# uses.
_TRUST, _TRUST_SLOPE, _SLOPE_SHARE = 0.2, 0.6, 0.75


@dataclass(frozen=True)
class TLD(SparseLoss):
    """Teacher-led difference loss: at the teacher's k largest ids, KL between softmaxes over all pairwise differences.

    It takes both models' logits at these ids, divided by T, in the teacher's order; then all k(k−1)/2 differences
    z[i] − z[j], i < j; then the softmax over the differences; then KL(teacher ‖ student). There is no T² factor. It is
    exact for any targets with K ≥ k entries, at every temperature; with fewer, all K are compared (one entry has no
    pairs, and gives 0). An entry of -inf gets the value of a missing one (see ``SLD``).
    """

    name: ClassVar[str] = "t_ld"
    k: int = 8
    temperature: float = 3.0

    def __post_init__(self) -> None:
        check_count(self.name, 2, k=self.k)
        check_positive(self.name, temperature=self.temperature)

    def select(self, logits_NV: Tensor, targets: TopK) -> Selection:
        k = min(self.k, targets.ranked)
        ids_Nk, teacher_Nk = targets.ids[:, :k], targets.logprobs[:, :k]
        usable_Nk = torch.ones_like(ids_Nk, dtype=torch.bool)
        lowest_N1 = bound(targets)[:, None] - 1
        return Selection(ids_Nk, torch.where(teacher_Nk == -math.inf, lowest_N1, teacher_Nk), usable_Nk)

    def at(self, student_NC: Tensor, selection: Selection) -> Tensor:
        return difference_kl(selection.teacher_NC, student_NC, selection.usable_NC, self.temperature)


@dataclass(frozen=True)
class SLD(SparseLoss):
    """Student-led difference loss: as ``t_ld``, at the *student's* k largest ids, in the student's order.

    The gradient flows through the student's values, not through the choice of ids. It is exact where the targets hold
    the student's ids. Where one is missing, ``missing`` says what to use as the teacher's value:

    * ``bound``: b − ``offset`` − ``slope`` · (share of the k that is missing), in nats, where b = min(least listed
      log-prob, log of the residual mass) is the largest possible value: if more ids are missing, the student is further
      from the teacher, and the teacher's values for them are lower;
    * ``drop``: every pair with a missing value is left out.

    ``estimator`` (an ``Estimator``, or the path of a saved one) gives an estimate e of each missing value. The value
    is then b − ``offset`` − 0.75 · ``slope`` · m − (0.2 + 0.6 m) · max(b − e, 0), where m is the missing share.

    The bound is computed from the ranked entries: tail samples and candidates have lower values.
    """

    name: ClassVar[str] = "s_ld"
    k: int = 8
    temperature: float = 3.0
    missing: str = "bound"
    offset: float = 0.65
    slope: float = 2.4
    estimator: Estimator | str | None = None

    def __post_init__(self) -> None:
        check_count(self.name, 2, k=self.k)
        check_positive(self.name, temperature=self.temperature)
        check_not_negative(self.name, offset=self.offset, slope=self.slope)
        if isinstance(self.estimator, str):
            object.__setattr__(self, "estimator", Estimator.load(self.estimator))
        elif not isinstance(self.estimator, Estimator | None):
            raise ConfigError(
                f"{self.name}: estimator = {self.estimator!r} is not allowed; it must be an Estimator or a path"
            )
        if self.missing not in MISSING:
            raise ConfigError(
                f"{self.name}: missing = {self.missing!r} is not allowed; choose from {', '.join(MISSING)}"
            )

    def select(self, logits_NV: Tensor, targets: TopK) -> Selection:
        ids_Nk = largest_ids(logits_NV, min(self.k, logits_NV.shape[1]))
        teacher_Nk, listed_Nk = look_up(targets, ids_Nk)
        known_Nk = listed_Nk & (teacher_Nk != -math.inf)
        fill_Nk = self.fill(targets, ids_Nk, known_Nk)
        usable_Nk = known_Nk if self.missing == "drop" else torch.ones_like(known_Nk)
        coverage_N = listed_Nk.to(logits_NV.dtype).mean(1)
        return Selection(ids_Nk, torch.where(known_Nk, teacher_Nk, fill_Nk), usable_Nk, coverage_N=coverage_N)

    def fill(self, targets: TopK, ids_Nk: Tensor, known_Nk: Tensor) -> Tensor:
        """Values for missing teacher log-probs: ``[N, k]``, or ``[N, 1]`` with one value for each row."""
        missing_N1 = (~known_Nk).to(targets.logprobs.dtype).mean(1, keepdim=True)
        bound_N1 = bound(targets)[:, None]
        if self.estimator is None:
            return bound_N1 - self.offset - self.slope * missing_N1
        assert isinstance(self.estimator, Estimator)
        if self.estimator.mean_V.device != ids_Nk.device:
            object.__setattr__(self, "estimator", self.estimator.to(ids_Nk.device))
        # There is no estimate for ids that only the student has.
        shared_Nk = ids_Nk < len(self.estimator.mean_V)
        estimate_Nk = self.estimator.predict(targets, torch.where(shared_Nk, ids_Nk, 0))
        below_Nk = torch.where(shared_Nk, bound_N1 - estimate_Nk, 0).clamp_min(0)
        trust_N1 = _TRUST + _TRUST_SLOPE * missing_N1
        return bound_N1 - self.offset - _SLOPE_SHARE * self.slope * missing_N1 - trust_N1 * below_Nk

    def at(self, student_NC: Tensor, selection: Selection) -> Tensor:
        return difference_kl(selection.teacher_NC, student_NC, selection.usable_NC, self.temperature)


@dataclass(frozen=True)
class BiLD(SLD):
    """t-LD + s-LD with equal weights, without a T² factor; see ``t_ld`` and ``s_ld`` for each half and what it assumes.

    The defaults, k = 8 and T = 3, are the paper's. At most 2 k ids of each position have a gradient.
    """

    name: ClassVar[str] = "bild"

    def select(self, logits_NV: Tensor, targets: TopK) -> Selection:
        led = TLD(self.k, self.temperature).select(logits_NV, targets)
        student_led = super().select(logits_NV, targets)
        return Selection(
            torch.cat([led.ids_NC, student_led.ids_NC], 1),
            torch.cat([led.teacher_NC, student_led.teacher_NC], 1),
            torch.cat([led.usable_NC, student_led.usable_NC], 1),
            led=led.ids_NC.shape[1],
            coverage_N=student_led.coverage_N,
        )

    def at(self, student_NC: Tensor, selection: Selection) -> Tensor:
        halves = (slice(0, selection.led), slice(selection.led, None))
        led, following = (
            difference_kl(selection.teacher_NC[:, h], student_NC[:, h], selection.usable_NC[:, h], self.temperature)
            for h in halves
        )
        return led + following


def bound(targets: TopK) -> Tensor:
    """``[N]``, the largest possible log-prob of an id that isn't listed; finite if any entry of the row is.

    min(least finite listed log-prob, log of the residual mass); a residual mass of 0 (-inf) is not used. Only the
    ranked entries are known to be larger than all ids that aren't listed.
    """
    ranked_NR = targets.logprobs[:, : targets.ranked]
    least_N = torch.where(ranked_NR == -math.inf, 0, ranked_NR).amin(1)
    residual_N = targets.residual_logprob
    return torch.where(residual_N > -math.inf, torch.minimum(least_N, residual_N), least_N)


def difference_kl(teacher_Nk: Tensor, student_Nk: Tensor, usable_Nk: Tensor, temperature: float) -> Tensor:
    """KL ``[N]`` between the softmaxes over pairwise differences, without pairs that hold an unusable entry."""
    count = student_Nk.shape[1]
    first_P, second_P = torch.triu_indices(count, count, 1, device=student_Nk.device)
    if first_P.numel() == 0:
        return student_Nk.sum(1) * 0
    pair_NP = usable_Nk[:, first_P] & usable_Nk[:, second_P]
    # A row without a usable pair compares zeros: its KL and its gradient are 0.
    alone_N1 = ~pair_NP.any(1, keepdim=True)

    def log_softmax(values_Nk: Tensor) -> Tensor:
        differences_NP = (values_Nk[:, first_P] - values_Nk[:, second_P]) / temperature
        differences_NP = torch.where(pair_NP, differences_NP, -math.inf)
        return torch.where(alone_N1, 0, differences_NP).log_softmax(1)

    return kl(log_softmax(teacher_Nk), log_softmax(student_Nk))
