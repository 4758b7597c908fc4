"""The teacher's k most probable tokens at each position, and the residual mass of all others.

Shape legend: N positions, K entries kept for each, V ids in the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from logitcache.errors import TargetsError
from logitcache.targets.beyond import Beyond
from logitcache.targets.candidates import choose_candidates
from logitcache.targets.largest import log_sum_exp, ranked_ids
from logitcache.targets.narrow import ReadWide, id_dtype
from logitcache.targets.tail_sample import draw_tail

_TensorMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class TopK:
    """Top-k log-probabilities of N next-token distributions: what engines give, shards store and losses take.

    Ids and log-probs may be given in a narrower dtype. They keep it, also in :meth:`to`, until they are read.

    Attributes:
        ids: ``[N, K]`` int64, token ids, most probable first; equal values are in ascending order of id. They may be
            given as uint16 (V up to 65,536) or int32 (V up to 2^31).
        logprobs: ``[N, K]`` float32 (float64 is kept), natural log of the probability at temperature 1, in nats.
        residual_logprob: ``[N]``, log of the probability mass of all ids that are not listed; -inf if K = V.
        vocab_size: V, the length of the logit vector that the distribution was taken from.
        log_partition: ``[N]`` or None, log Σ exp(logits): raw logits are ``logprobs + log_partition``.
        logit_std: ``[N]`` or None, the unbiased standard deviation of the V raw logits (NormKD and DKD need it).
        tail_samples, candidates: how many of the K entries, the last ones, were not chosen by rank (see ``Beyond``).
            Their log-probs are the teacher's too.

    Raises:
        TargetsError: the shapes or dtypes don't fit together.
    """

    ids: Tensor
    logprobs: Tensor
    residual_logprob: Tensor
    vocab_size: int
    log_partition: Tensor | None = None
    logit_std: Tensor | None = None
    tail_samples: int = 0
    candidates: int = 0

    def __post_init__(self) -> None:
        ids, logprobs = (vars(self)[name] for name in ("ids", "logprobs"))
        if ids.dim() != 2 or ids.shape != logprobs.shape:
            raise TargetsError(f"ids {tuple(ids.shape)} and logprobs {tuple(logprobs.shape)} must both be [N, K]")
        if ids.dtype not in (torch.int64, id_dtype(self.vocab_size)):
            raise TargetsError(f"ids are {ids.dtype}; they must be torch.int64, or {id_dtype(self.vocab_size)}")
        if not 1 <= self.k <= self.vocab_size:
            raise TargetsError(
                f"K = {self.k} entries a position; it must be from 1 to the vocabulary's {self.vocab_size}"
            )
        self.beyond.check(self.k)
        if not logprobs.dtype.is_floating_point:
            raise TargetsError(f"logprobs are {logprobs.dtype}; they must be floating point")
        wide = torch.promote_types(logprobs.dtype, torch.float32)
        for name in ("residual_logprob", "log_partition", "logit_std"):
            value = getattr(self, name)
            if value is None and name != "residual_logprob":
                continue
            if value.shape != (len(self),):
                raise TargetsError(f"{name} {tuple(value.shape)} must be [N] = [{len(self)}]")
            object.__setattr__(self, name, value.to(wide))

    def __len__(self) -> int:
        return int(vars(self)["ids"].shape[0])

    @property
    def k(self) -> int:
        """K, the entries kept for each position."""
        return int(vars(self)["ids"].shape[1])

    @property
    def ranked(self) -> int:
        """How many entries, the first ones, are the teacher's most probable."""
        return self.k - self.beyond.count

    @property
    def beyond(self) -> Beyond:
        """Which of the K entries were not chosen by rank."""
        return Beyond(self.tail_samples, self.candidates)

    @property
    def samples_tail(self) -> bool:
        """True if the last entries are a sample of the tail, which represents the whole tail."""
        return self.tail_samples > 0

    @property
    def is_full(self) -> bool:
        """True when every id of the vocabulary is listed, so nothing about the distribution is missing."""
        return self.k == self.vocab_size

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        k: int,
        *,
        statistics: bool = False,
        overwrite: bool = False,
        tail_samples: int = 0,
        draws: Tensor | None = None,
        candidates: int = 0,
        reference: Tensor | None = None,
    ) -> TopK:
        """Take the k largest raw logits of each row; or fewer, and a sample of the tail or candidates as well.

        Args:
            logits: ``[N, V]``, any floating dtype; arithmetic is in float32, or in float64 for float64 logits.
            k: entries to keep, 1 to V.
            statistics: also keep ``log_partition`` and ``logit_std``.
            overwrite: compute in the memory of ``logits``, which is useless after that; saves a copy of ``[N, V]``.
            tail_samples: how many of the k are drawn from all ids below the others, 0 to k − 1.
            draws: ``[N]`` float64 in [0, 1), the random numbers that decide which; needed with ``tail_samples``.
            candidates: how many of the k are the ids below the others that have the reference's largest logits.
            reference: the reference's logits ``[N, W]``; needed with ``candidates``.

        Raises:
            TargetsError: ``logits`` is not ``[N, V]``, or a number is out of range.
        """
        _check_logits(logits, k)
        Beyond(tail_samples, candidates).check(k)
        for name, count, given in (("draws [N]", tail_samples, draws), ("reference [N, W]", candidates, reference)):
            if count and (given is None or len(given) != len(logits)):
                raise TargetsError(f"what to keep beyond the top needs {name}, a row for each of the logits'")
        logits_NV = logits.detach()
        ids_NK = ranked_ids(logits_NV, k)
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        logit_std_N = logits_NV.to(wide).std(1) if statistics else None
        if draws is not None and tail_samples:
            ids_NK = draw_tail(logits_NV.to(wide), ids_NK, tail_samples, draws)
        if reference is not None and candidates:
            ids_NK = choose_candidates(logits_NV.to(wide), ids_NK, candidates, reference)
        values_NK = logits_NV.gather(1, ids_NK).to(wide)
        # The residual mass is summed directly: one minus the listed mass would lose all digits. The sum is relative to
        # the largest logit in it, which may be far below the listed ones, or above a candidate.
        rest_NV = logits_NV if overwrite else logits_NV.clone()
        rest_N = log_sum_exp(rest_NV.scatter_(1, ids_NK, -math.inf), wide)
        targets, log_partition_N = normalised(ids_NK, values_NK, rest_N, logits_NV.shape[1])
        return replace(
            targets,
            log_partition=log_partition_N if statistics else None,
            logit_std=logit_std_N,
            tail_samples=tail_samples,
            candidates=candidates,
        )

    @classmethod
    def cat(cls, parts: Sequence[TopK]) -> TopK:
        """Join positions of several TopK with equal K and vocabulary; a statistic is kept if all parts have it.

        Raises:
            TargetsError: there are no parts, or they differ in K, vocabulary, tail samples or candidates.
        """
        if not parts:
            raise TargetsError("nothing to join: the list of TopK is empty")
        if len({(part.k, part.vocab_size, part.beyond) for part in parts}) > 1:
            raise TargetsError("only TopK of equal K, vocabulary, tail samples and candidates can be joined")

        def join(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else torch.cat(values)

        return cls(
            ids=torch.cat([part.ids for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
            residual_logprob=torch.cat([part.residual_logprob for part in parts]),
            vocab_size=parts[0].vocab_size,
            log_partition=join("log_partition"),
            logit_std=join("logit_std"),
            tail_samples=parts[0].tail_samples,
            candidates=parts[0].candidates,
        )

    def __getitem__(self, rows: slice | Tensor) -> TopK:
        """Select positions by slice, index tensor or boolean mask."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TopK:
        """Copy to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def top(self, k: int) -> TopK:
        """Keep the first k entries; the mass of the others is added to the residual mass.

        Raises:
            TargetsError: k is out of range, or would keep only a part of the tail samples or candidates.
        """
        if not 1 <= k <= self.k:
            raise TargetsError(f"can't keep {k} entries of {self.k}")
        if k == self.k:
            return self
        if k > self.ranked:
            raise TargetsError(
                f"can't keep {k} entries of {self.k}: only the first {self.ranked} are the teacher's top; "
                f"keep all, or at most {self.ranked}"
            )
        dropped_N = self.logprobs[:, k:].logsumexp(1)
        return replace(
            self,
            ids=self.ids[:, :k],
            logprobs=self.logprobs[:, :k],
            residual_logprob=torch.logaddexp(self.residual_logprob, dropped_N),
            tail_samples=0,
            candidates=0,
        )

    def limited(self, vocab_size: int) -> TopK:
        """The same targets over a smaller vocabulary. The caller has left out positions that list an id outside it."""
        return replace(self, vocab_size=vocab_size)

    def pin_memory(self) -> TopK:
        """Copy to page-locked memory, from which copies to a GPU run in the background."""
        return self._map(lambda tensor: tensor.pin_memory())

    def in_dtype(self, dtype: torch.dtype) -> TopK:
        """Widened: ids to int64, all else to ``dtype``, which is float32 or float64."""
        floats: dict[str, Any] = {
            name: value.to(dtype)
            for name in ("logprobs", "residual_logprob", "log_partition", "logit_std")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, ids=self.ids, **floats)

    def _map(self, function: _TensorMap) -> TopK:
        changed: dict[str, Any] = {
            name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


# Set after the class is made: inside the class, ``dataclass`` would take it for the field's default.
TopK.ids = ReadWide("ids", torch.int64)  # type: ignore[assignment]
TopK.logprobs = ReadWide("logprobs", torch.float32)  # type: ignore[assignment]


def _check_logits(logits: Tensor, k: int) -> None:
    if logits.dim() != 2:
        raise TargetsError(f"logits {tuple(logits.shape)} must be [N, V]")
    if not 1 <= k <= logits.shape[1]:
        raise TargetsError(f"top-k {k} must be from 1 to the vocabulary's {logits.shape[1]}")


def normalised(ids_NK: Tensor, values_NK: Tensor, rest_N: Tensor, vocab_size: int) -> tuple[TopK, Tensor]:
    """Targets from raw logits, and the log-partition ``[N]``.

    Args:
        ids_NK: the entries' ids.
        values_NK: their logits, float32 or float64.
        rest_N: log Σ exp of all other logits.
        vocab_size: V.
    """
    first_N = values_NK[:, 0]
    # Log Σ exp relative to the first entry: it is at most log V, so the log-probs keep their digits.
    values_NK, rest_N = values_NK - first_N[:, None], rest_N - first_N
    relative_N = torch.logaddexp(values_NK.logsumexp(1), rest_N)
    return TopK(ids_NK, values_NK - relative_N[:, None], rest_N - relative_N, vocab_size), relative_N + first_N
