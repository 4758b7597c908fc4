"""Measure on audit rows how close the gradient of s-LD from a cache is to the exact one, and choose the best settings.

Audit rows hold every logit of the teacher for a few hundred positions. Cut to the cache's K, they give the gradient of
training from the cache. Uncut, they give the gradient of training with the teacher in memory.

Shape legend: A audit rows, V ids of the vocabulary, k ids a half compares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from logitcache.errors import TargetsError
from logitcache.losses.base import Loss
from logitcache.losses.bild import SLD
from logitcache.losses.estimator import Estimator
from logitcache.losses.mix import Mix, parts_of
from logitcache.targets.topk import TopK

#: Values that are tried for ``offset`` and ``slope``, in nats.
OFFSETS, SLOPES = (0.35, 0.65, 1.0, 1.5, 2.0), (0.0, 1.2, 2.4)


@dataclass(frozen=True)
class GradientMatch:
    """Sums over audit rows, for the cosines between the gradients from the cache and the exact ones.

    Attributes:
        dot, ours, exact: Σ ours · exact, Σ |ours|², Σ |exact|²; ours are the gradients from the cache.
        cosines: Σ of each row's own cosine.
        rows: number of audit rows.
    """

    dot: float = 0.0
    ours: float = 0.0
    exact: float = 0.0
    cosines: float = 0.0
    rows: int = 0

    def plus(self, other: GradientMatch) -> GradientMatch:
        return GradientMatch(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    @property
    def cosine(self) -> float:
        """The cosine over all rows together, as in one step: rows with large gradients have more weight."""
        return self.dot / max(math.sqrt(self.ours * self.exact), 1e-30)

    @property
    def mean_cosine(self) -> float:
        """The average of the rows' own cosines."""
        return self.cosines / max(self.rows, 1)


def s_ld_match(loss: SLD, student_AV: Tensor, full: TopK, k: int) -> GradientMatch:
    """Compare s-LD from the teacher's top ``k`` with s-LD from all ids, on rows that list every id.

    Args:
        loss: ``s_ld`` or ``bild``; only its student-led half is compared.
        student_AV: ``[A, V]`` logits.
        full: A rows of full targets.
        k: K of the cache.

    Raises:
        TargetsError: ``full`` doesn't list every id.
    """
    return _match(loss, student_AV, full.top(k), _exact(loss, student_AV, full))


def best_fill(
    loss: SLD, rows: Sequence[tuple[Tensor, TopK]], k: int, estimator: Estimator | None = None
) -> tuple[SLD, GradientMatch]:
    """Choose the settings of ``loss`` whose gradient is closest to the exact one on audit rows.

    It chooses ``offset`` and ``slope``, and whether to estimate missing values with ``estimator``.

    Args:
        loss: ``s_ld`` or ``bild`` to start from.
        rows: (student's logits ``[A, V]``, full targets) in parts; not the rows that the estimator was learnt from.
        k: K of the cache.
        estimator: None keeps that of ``loss``.

    Returns:
        The loss with these settings, and how close its gradient is.

    Raises:
        TargetsError: the targets aren't full.
    """
    estimators = dict.fromkeys((loss.estimator, estimator or loss.estimator))
    tried = [loss]
    for known, offset, slope in itertools.product(estimators, OFFSETS, SLOPES):
        tried.append(replace(loss, missing="bound", offset=offset, slope=slope, estimator=known))
    parts = [(student_AV, full.top(k), _exact(loss, student_AV, full)) for student_AV, full in rows]
    matches = [total(_match(candidate, *part) for part in parts) for candidate in tried]
    best = max(range(len(tried)), key=lambda index: matches[index].cosine)
    return tried[best], matches[best]


def _exact(loss: SLD, student_AV: Tensor, full: TopK) -> Tensor:
    """``[A, k]``: the gradient from full targets, where no value is missing."""
    if not full.is_full:
        raise TargetsError(f"audit rows must list all {full.vocab_size} ids; these list {full.k}")
    return gradient(replace(_half(loss), estimator=None), student_AV, full)


def _match(loss: SLD, student_AV: Tensor, targets: TopK, exact_Ak: Tensor) -> GradientMatch:
    return compare(gradient(_half(loss), student_AV, targets), exact_Ak)


def compare(ours_Ak: Tensor, exact_Ak: Tensor) -> GradientMatch:
    """Sums over rows of two gradients with respect to the same ids."""
    dot_A, ours_A, exact_A = (
        (left * right).double().sum(1)
        for left, right in ((ours_Ak, exact_Ak), (ours_Ak, ours_Ak), (exact_Ak, exact_Ak))
    )
    # Two gradients of 0 are equal: their cosine counts as 1.
    cosines_A = torch.where(exact_A > 0, dot_A / (ours_A * exact_A).sqrt().clamp_min(1e-30), (ours_A == 0).double())
    dot, ours, exact, cosines = (float(value.sum()) for value in (dot_A, ours_A, exact_A, cosines_A))
    return GradientMatch(dot, ours, exact, cosines, len(ours_Ak))


def _half(loss: SLD) -> SLD:
    """The student-led half of ``bild``, or ``s_ld`` itself."""
    return SLD(**{item.name: getattr(loss, item.name) for item in fields(SLD)})


def gradient(loss: SLD, student_AV: Tensor, targets: TopK) -> Tensor:
    """The gradient ``[A, k]`` with respect to the student's logits at its top ids; it is zero at all other ids."""
    selection = loss.select(student_AV, targets)
    with torch.enable_grad():
        values_Ak = student_AV.gather(1, selection.ids_NC).detach().requires_grad_()
        (gradient_Ak,) = torch.autograd.grad(loss.at(values_Ak, selection).sum(), values_Ak)
    return gradient_Ak


def total(matches: Iterable[GradientMatch]) -> GradientMatch:
    """The sum of several matches."""
    result = GradientMatch()
    for match in matches:
        result = result.plus(match)
    return result


def student_led(loss: Loss) -> SLD | None:
    """The part of a loss that has a student-led half; None if there is none."""
    return next((part for _, part in parts_of(loss) if isinstance(part, SLD)), None)


def with_fill(loss: Loss, fill: SLD) -> Loss:
    """The same loss or mix; its student-led part takes the settings for missing values from ``fill``."""

    def changed(part: Loss) -> Loss:
        if not isinstance(part, SLD):
            return part
        return replace(part, missing=fill.missing, offset=fill.offset, slope=fill.slope, estimator=fill.estimator)

    return (
        Mix(tuple((weight, changed(part)) for weight, part in loss.parts)) if isinstance(loss, Mix) else changed(loss)
    )
