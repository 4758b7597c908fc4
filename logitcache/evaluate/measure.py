"""How close a student is to a cache's teacher: KL, cross-entropy, agreement, overlap and coverage, per token.

Shape legend: N positions that have targets, D hidden width, V ids of the vocabulary, K entries per position.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitcache.cache.opening import open_place
from logitcache.cache.reader import Cache
from logitcache.errors import LogitCacheWarning, ModelError
from logitcache.losses import metrics
from logitcache.models import Head, evaluating, find_head, without_adapter
from logitcache.stream import Batch, stream
from logitcache.students.pairing import load_student, pair
from logitcache.targets.topk import TopK
from logitcache.utils.progress import Report, silent

OVERLAP_KS = (1, 8, 32)
# At most this many logits are in memory at the same time (128 MiB in fp32).
_CHUNK_NUMBERS = 1 << 25


@dataclass(frozen=True)
class Metrics:
    """Measurements of a student on a held-out cache: averages over the positions that have targets.

    Attributes:
        kl: KL(teacher ‖ student) in nats, with the ids outside the cached top K as one event: a lower bound of the full
            KL.
        cross_entropy: −log of the student's probability of the token that follows in the text, in nats.
        perplexity: exp(cross_entropy).
        top1_agreement: share of positions where both models have the same most probable token.
        overlap: ``{k: |student's top k ∩ teacher's top k| / k}``.
        s_ld_coverage: share of the student's top 8 ids that are in the cache's top K.
        positions: how many positions were measured.
    """

    kl: float
    cross_entropy: float
    perplexity: float
    top1_agreement: float
    overlap: dict[int, float]
    s_ld_coverage: float
    positions: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_flat(cls, values: dict[str, Any], prefix: str = "") -> Metrics:
        """The inverse of :meth:`flat`; other entries are ignored."""
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        overlap = {int(name[8:]): value for name, value in own.items() if name.startswith("overlap@")}
        plain = {item.name: own[item.name] for item in fields(cls) if item.name not in ("overlap", "positions")}
        return cls(**plain, overlap=overlap, positions=int(own["positions"]))

    def flat(self, prefix: str = "") -> dict[str, float]:
        """All values by name in one dictionary, for logs; overlaps are ``overlap@8`` and so on."""
        values = {name: value for name, value in asdict(self).items() if name != "overlap"}
        values |= {f"overlap@{k}": value for k, value in self.overlap.items()}
        return {prefix + name: float(value) for name, value in values.items()}


@dataclass(frozen=True)
class MetricSums:
    """Sums over positions, in float64, which can be added over batches and ranks."""

    sums: dict[str, Tensor]
    positions: int = 0

    @classmethod
    def zeros(cls, k: int, device: torch.device) -> MetricSums:
        names = (
            "kl",
            "cross_entropy",
            "top1_agreement",
            "s_ld_coverage",
            *(f"overlap@{n}" for n in OVERLAP_KS if n <= k),
        )
        return cls({name: torch.zeros((), dtype=torch.float64, device=device) for name in names})

    def plus(self, other: MetricSums) -> MetricSums:
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return MetricSums(sums, self.positions + other.positions)

    def reduced(self, device: torch.device) -> MetricSums:
        """The sum over all ranks of the default process group."""
        positions = torch.tensor(float(self.positions), dtype=torch.float64)
        values = torch.stack([value.to(device) for value in (*self.sums.values(), positions)])
        torch.distributed.all_reduce(values)
        return MetricSums(dict(zip(self.sums, values, strict=False)), int(values[-1]))

    def mean(self) -> Metrics:
        """Averages; all NaN if no position was measured."""
        count = self.positions or math.nan
        means = {name: float(value) / count for name, value in self.sums.items()}
        cross_entropy = means.get("cross_entropy", math.nan)
        return Metrics(
            kl=means.get("kl", math.nan),
            cross_entropy=cross_entropy,
            perplexity=math.exp(cross_entropy) if cross_entropy < 700 else math.inf,
            top1_agreement=means.get("top1_agreement", math.nan),
            overlap={int(name[8:]): value for name, value in means.items() if name.startswith("overlap@")},
            s_ld_coverage=means.get("s_ld_coverage", math.nan),
            positions=self.positions,
        )


@torch.no_grad()
def metric_sums(head: Head, hidden_ND: Tensor, targets: TopK, labels_N: Tensor, vocab_limit: int) -> MetricSums:
    """Sums of every metric over N positions, computed for a few positions at a time."""
    total = MetricSums.zeros(targets.ranked, hidden_ND.device)
    size = max(1, _CHUNK_NUMBERS // head.vocab_size)
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        logits_NV = head.logits(hidden_ND[rows]).float()[:, :vocab_limit]
        part, labels = targets[rows], labels_N[rows]
        values = {
            "kl": metrics.kl_with_residual(logits_NV, part),
            "cross_entropy": metrics.cross_entropy(logits_NV, labels),
            "top1_agreement": metrics.top1_agreement(logits_NV, part),
            "s_ld_coverage": metrics.s_ld_coverage(logits_NV, part),
        }
        values |= {f"overlap@{k}": metrics.overlap_at_k(logits_NV, part, k) for k in OVERLAP_KS if k <= part.ranked}
        total = total.plus(MetricSums({name: value.double().sum() for name, value in values.items()}, len(part)))
    return total


def evaluate(
    cache: str | Path | Cache,
    student: Any,
    *,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    report: Report = silent,
) -> Metrics:
    """Measure a student on a cache of the teacher's predictions. The teacher itself isn't needed.

    The same student, cache and settings always give the same numbers.

    Args:
        cache: an open cache or its path, preferably of text that the student wasn't trained on.
        student: a directory, a hub id, or a loaded model, which must use the cache's tokenizer.
        batch_size: sequences in a forward pass.
        dtype: of the weights, if the student is loaded here.
        device: by default a GPU if there is one, else the CPU.
        report: called with progress in tokens.

    Raises:
        ModelError: the student can't be loaded, or its vocabulary is too small.
        TokenizerMismatchError: the student's tokenizer gives different ids to tokens.
        TargetsError: the cache holds no targets.
        ConfigError: a sequence of the cache is longer than the student takes.
        CacheNotFoundError, CacheFormatError, CorruptCacheError, StorageError: as when opening the cache.
    """
    opened = cache if isinstance(cache, Cache) else open_place(cache)
    named = isinstance(student, (str, Path))
    model = load_student(student, dtype=dtype) if named else student
    fit = pair(opened, model, student if named else None)
    for note in fit.notes:
        warnings.warn(note, LogitCacheWarning, stacklevel=2)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(target)
    with evaluating(model):
        return _measure(opened, model, fit.vocab_limit, batch_size, target, report).mean()


@torch.no_grad()
def _measure(
    cache: Cache, model: Any, vocab_limit: int, batch_size: int, device: torch.device, report: Report
) -> MetricSums:
    inner, refusal = without_adapter(model)
    if refusal:
        raise ModelError(f"the student can't be measured: {refusal}")
    head = find_head(inner)
    if head.cost:
        warnings.warn(f"the student: {head.cost}", LogitCacheWarning, stacklevel=3)
    total, done = MetricSums.zeros(cache.ranked, device), 0
    for batch in _batches(cache, vocab_limit, 1 if head.turn is not None else batch_size):
        batch = batch.to(device)
        hidden_ND = head.hidden_at(batch.input_ids, batch.target_index, position_ids=batch.position_ids)
        total = total.plus(metric_sums(head, hidden_ND, batch.targets.limited(vocab_limit), batch.labels, vocab_limit))
        done += batch.tokens
        report("Evaluating", done, cache.manifest.totals.tokens, "tokens")
    return total


def _batches(cache: Cache, vocab_limit: int, batch_size: int) -> Iterator[Batch]:
    yield from stream(cache, batch_size=batch_size, shuffle=False, vocab_limit=vocab_limit)
