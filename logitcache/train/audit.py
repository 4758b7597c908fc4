"""Audit rows in training: they choose the values for missing teacher log-probs, and measure the error of s-LD.

Shape legend: A audit rows, V ids of the teacher's vocabulary, W ids that student and teacher both have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from logitcache.cache.reader import Cache
from logitcache.errors import TargetsError
from logitcache.losses import Estimator, Loss, StudentWithLoss
from logitcache.losses.fidelity import GradientMatch, best_fill, s_ld_match, student_led, total, with_fill
from logitcache.models import device_of, evaluating
from logitcache.stream import Batch, stream
from logitcache.targets.topk import TopK

#: Runs the student: takes a batch of audit rows, and gives its logits ``[A, W]``, float32.
Logits = Callable[[Batch], Tensor]

#: Rank of the estimator that is learnt from audit rows, if there are more rows than this.
RANK = 64


class Audit:
    """Prepared audit rows: a few hundred positions at which a cache holds every id.

    The estimator is learnt from every other sequence. The settings for missing values are chosen and measured on the
    others.

    Args:
        rows: a cache with K = V, from ``logitcache dump --top-k all --every 60``.
        caches: the caches to train on; the audit rows must be of the same teacher.
        vocab_limit: W; student and teacher both have the ids below it.

    Raises:
        TargetsError: the rows list too few ids, are of another teacher, or there are fewer than two sequences.
    """

    def __init__(self, rows: Cache, caches: tuple[Cache, ...], vocab_limit: int) -> None:
        if rows.top_k != rows.vocab_size:
            raise TargetsError(
                f"the audit cache {rows.root} holds {rows.top_k} of {rows.vocab_size} ids a position; audit rows need "
                "all: dump them with --top-k all --every 60"
            )
        ours = {cache.manifest.provenance.teacher.weights_digest for cache in caches}
        if rows.manifest.provenance.teacher.weights_digest not in ours:
            raise TargetsError(
                f"the audit cache {rows.root} is of the teacher {rows.manifest.provenance.teacher.name}, not of a "
                "teacher of the caches to train on"
            )
        if len(rows) < 2:
            raise TargetsError(f"the audit cache {rows.root} holds {len(rows)} sequence; it takes two at least")
        # The candidates of the audit rows aren't known: only ranked entries are used, and the true cosine is higher.
        self.k = min(cache.ranked for cache in caches)
        self._limit = vocab_limit
        batches = list(stream(rows, batch_size=1, shuffle=False, prefetch=0))
        self._teaching, self._measuring = batches[::2], batches[1::2]

    def targets_of(self, batch: Batch) -> TopK:
        """``[A, W]``: the full targets over the ids that both models have."""
        full = batch.targets
        if self._limit == full.vocab_size:
            return full
        shared_AV = full.ids < self._limit
        shape = (len(full), self._limit)
        # Every row lists every id once, so all rows keep equally many.
        logprobs_AW = full.logprobs[shared_AV].reshape(shape).log_softmax(1)
        rest_A = torch.full_like(full.residual_logprob, -torch.inf)
        return TopK(full.ids[shared_AV].reshape(shape), logprobs_AW, rest_A, self._limit)

    def choose(self, loss: Loss, logits: Logits) -> tuple[Loss, GradientMatch | None]:
        """The loss with the settings for missing values whose gradient is closest to exact s-LD now.

        A loss that drops pairs, or has no student-led half, is not changed.

        Returns:
            The loss, and how close its gradient is; None without a student-led half.
        """
        led = student_led(loss)
        if led is None or led.missing == "drop":
            return loss, self.match(loss, logits)
        parts = [(logits(batch), self.targets_of(batch)) for batch in self._measuring]
        on_device = [(rows, full.to(rows.device)) for rows, full in parts]
        fill, match = best_fill(led, on_device, self.k, self._estimator())
        return with_fill(loss, fill), match

    def match(self, loss: Loss, logits: Logits) -> GradientMatch | None:
        """How close the gradient of s-LD from the cache is to the exact one; None without a student-led half."""
        led = student_led(loss)
        if led is None:
            return None
        parts = [(logits(batch), self.targets_of(batch)) for batch in self._measuring]
        return total(s_ld_match(led, rows, full.to(rows.device), self.k) for rows, full in parts)

    def _estimator(self) -> Estimator | None:
        """The estimator that is learnt from the teaching rows; None if there are too few."""
        taught = [self.targets_of(batch) for batch in self._teaching]
        rows_AW = torch.cat([torch.empty_like(full.logprobs).scatter_(1, full.ids, full.logprobs) for full in taught])
        return Estimator.fit([rows_AW], RANK) if min(rows_AW.shape) > RANK else None


def without_targets(batch: Batch) -> Batch:
    """A batch for a pass that only needs logits, so that no targets are copied to the device."""
    return replace(batch, targets=batch.targets[:0], labels=batch.labels[:0])


def shared_logits(module: StudentWithLoss, batch: Batch, hidden_AD: Tensor) -> Tensor:
    """The student's logits at audit rows, float32 ``[A, W]``; for ``read`` of the module's ``forward``."""
    return module.logits(hidden_AD).float()


def describe(loss: Loss, match: GradientMatch) -> str:
    """One line about the values that are used for missing ones, and how close the gradient is."""
    led = student_led(loss)
    assert led is not None
    closeness = f"on audit rows the cosine of s-LD's gradient with the exact one is {match.cosine:.3f}"
    if led.missing == "drop":
        return f"pairs with a teacher value that the cache lacks are left out; {closeness}"
    estimated = ", estimated from the audit rows," if led.estimator is not None else ""
    return (
        f"teacher values that the cache lacks{estimated} are set to {led.offset:g} nats, and {led.slope:g} times the "
        f"missing share, below their bound; {closeness}"
    )


def choose_fill(audit: Audit, module: StudentWithLoss) -> list[str]:
    """Set the module's loss to the settings that fit its student best; return one line about it, or none without s-LD.

    With several ranks, all use the first one's choice, because rounding may differ between devices.
    """

    def logits(batch: Batch) -> Tensor:
        found: Tensor = module(without_targets(batch).to(device_of(module.student)), read=shared_logits)
        return found

    with evaluating(module), torch.no_grad():
        chosen = [audit.choose(module.loss, logits)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(chosen)
        module.loss, match = chosen[0]
    return [] if match is None else [describe(module.loss, match)]
