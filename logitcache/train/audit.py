"""Audit rows in training: they choose what stands for missing teacher values, and tell how true s-LD stays to itself.

Shape legend: A audit rows, V ids of the teacher's vocabulary, W ids that student and teacher share.
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

#: Runs the student: a batch of audit rows to its logits ``[A, W]`` there, float32.
Logits = Callable[[Batch], Tensor]

#: Rank of the estimator that is learnt from audit rows, if there are more rows than that.
RANK = 64


class Audit:
    """Audit rows made ready: a few hundred positions for which the cache holds every id.

    Every other sequence teaches the estimator; fills are chosen and measured on the rest.

    Args:
        rows: a cache with K = V, from ``logitcache dump --top-k all --every 60``.
        caches: what is trained on; the rows must be of the same teacher.
        vocab_limit: W; ids below it are known to student and teacher.

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
                f"the audit cache {rows.root} is of the teacher {rows.manifest.provenance.teacher.name}, which none of "
                "the caches to train on is of"
            )
        if len(rows) < 2:
            raise TargetsError(f"the audit cache {rows.root} holds {len(rows)} sequence; it takes two at least")
        # What a reference likes at the audit rows isn't known: the ranked entries count, and the true cosine is higher.
        self.k = min(cache.ranked for cache in caches)
        self._limit = vocab_limit
        batches = list(stream(rows, batch_size=1, shuffle=False, prefetch=0))
        self._teaching, self._measuring = batches[::2], batches[1::2]

    def targets_of(self, batch: Batch) -> TopK:
        """``[A, W]``: the full targets over the ids that both models know."""
        full = batch.targets
        if self._limit == full.vocab_size:
            return full
        shared_AV = full.ids < self._limit
        shape = (len(full), self._limit)
        # Every row lists every id once, so every row keeps as many.
        logprobs_AW = full.logprobs[shared_AV].reshape(shape).log_softmax(1)
        rest_A = torch.full_like(full.residual_logprob, -torch.inf)
        return TopK(full.ids[shared_AV].reshape(shape), logprobs_AW, rest_A, self._limit)

    def choose(self, loss: Loss, logits: Logits) -> tuple[Loss, GradientMatch | None]:
        """The loss with the fill that follows the exact s-LD best for the student as it is, and how closely it does.

        A loss that has no student-led half, or drops pairs, stays as it is; the first has no match.
        """
        led = student_led(loss)
        if led is None or led.missing == "drop":
            return loss, self.match(loss, logits)
        parts = [(logits(batch), self.targets_of(batch)) for batch in self._measuring]
        on_device = [(rows, full.to(rows.device)) for rows, full in parts]
        fill, match = best_fill(led, on_device, self.k, self._estimator())
        return with_fill(loss, fill), match

    def match(self, loss: Loss, logits: Logits) -> GradientMatch | None:
        """How closely s-LD from the cache follows the exact one now; None for a loss without a student-led half."""
        led = student_led(loss)
        if led is None:
            return None
        parts = [(logits(batch), self.targets_of(batch)) for batch in self._measuring]
        return total(s_ld_match(led, rows, full.to(rows.device), self.k) for rows, full in parts)

    def _estimator(self) -> Estimator | None:
        """What the teaching rows teach; None if there are too few."""
        taught = [self.targets_of(batch) for batch in self._teaching]
        rows_AW = torch.cat([torch.empty_like(full.logprobs).scatter_(1, full.ids, full.logprobs) for full in taught])
        return Estimator.fit([rows_AW], RANK) if min(rows_AW.shape) > RANK else None


def without_targets(batch: Batch) -> Batch:
    """A batch for a pass that only reads logits: targets of all ids need not be copied to the device for that."""
    return replace(batch, targets=batch.targets[:0], labels=batch.labels[:0])


def shared_logits(module: StudentWithLoss, batch: Batch, hidden_AD: Tensor) -> Tensor:
    """Float32 ``[A, W]``: what the student's forward pass is asked for at audit rows."""
    return module.logits(hidden_AD).float()


def describe(loss: Loss, match: GradientMatch) -> str:
    """One line about what stands for missing values, and how good that is."""
    led = student_led(loss)
    assert led is not None
    told = f"on audit rows the cosine of s-LD's gradient with the exact one is {match.cosine:.3f}"
    if led.missing == "drop":
        return f"pairs with a teacher value that the cache lacks are left out; {told}"
    estimated = ", estimated from the audit rows," if led.estimator is not None else ""
    return (
        f"teacher values that the cache lacks{estimated} stand {led.offset:g} nats, and {led.slope:g} times the share "
        f"missing, below their bound; {told}"
    )


def choose_fill(audit: Audit, module: StudentWithLoss) -> list[str]:
    """Set the module's loss to what the audit rows say of its student; one line about it, or none without s-LD.

    Under several ranks the first one's choice holds for all: roundings may differ from one device to the next.
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
