"""Estimate teacher values that a cache doesn't hold from those that it holds: kriging with a low-rank covariance.

A language model's logits vary in few directions. A low-rank factor of their covariance is learnt once from a few
hundred *audit rows* that hold every logit. It says how each id's value depends on the values of the listed ids: the
missing values of a row are the Gaussian posterior mean, given its K listed values. The cache gets no larger; each
teacher needs one V x R matrix.

Shape legend: A audit rows, N positions, V ids of the vocabulary, K entries in the targets, C ids asked for, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from logitcache.errors import TargetsError
from logitcache.targets.topk import TopK

_LEAST = -100.0  # nats, used for the log of 0
_LEAST_NOISE = 0.25  # nats²; so the posterior never depends on one listed value alone
_LEVEL_VARIANCE = 1e4  # large, because the level of a row is not known


@dataclass(frozen=True, eq=False)
class Estimator:
    """A model of a teacher's logits, learnt from audit rows.

    Attributes:
        mean_V: mean log-prob of each id, float32, nats.
        factor_VR: covariance ≈ factor @ factor.T + diag(noise), float32, nats.
        noise_V: variance that the factor doesn't explain, float32, nats².
    """

    mean_V: Tensor
    factor_VR: Tensor
    noise_V: Tensor

    @classmethod
    def fit(cls, rows: Iterable[Tensor], rank: int = 64) -> Estimator:
        """Learn from audit rows: tensors ``[A, V]`` of the teacher's logits or log-probs, a few hundred rows in all.

        Raises:
            TargetsError: the rows differ in vocabulary, hold NaN or +inf, or are not more than ``rank``.
        """
        parts = [row.detach().float() for row in rows]
        if not parts or any(part.dim() != 2 or part.shape[1] != parts[0].shape[1] for part in parts):
            raise TargetsError(f"audit rows {[tuple(part.shape) for part in parts]} must be [A, V], with one V")
        logits_AV = torch.cat(parts)
        count, vocab_size = logits_AV.shape
        if not 0 < rank < min(count, vocab_size):
            raise TargetsError(f"rank {rank} needs more than {rank} audit rows and ids; there are {count} rows")
        logits_AV = logits_AV.log_softmax(1).clamp_min(_LEAST)
        if not bool(logits_AV.isfinite().all()):
            raise TargetsError("audit rows hold NaN, +inf, or nothing but -inf: an estimator can't be learnt from them")
        mean_V = logits_AV.mean(0)
        # The level of a row means nothing: only differences within a row are learnt.
        centred_AV = logits_AV - mean_V
        centred_AV = centred_AV - centred_AV.mean(1, keepdim=True)
        _, vectors_AA = torch.linalg.eigh((centred_AV @ centred_AV.T).double() / count)
        vectors_AR = vectors_AA[:, -rank:].float()
        # A column is a principal direction over ids; its length is the standard deviation, 0 if rows repeat.
        factor_VR = centred_AV.T @ vectors_AR / count**0.5
        noise_V = (centred_AV.square().mean(0) - factor_VR.square().sum(1)).clamp_min(_LEAST_NOISE)
        return cls(mean_V, factor_VR, noise_V)

    def predict(self, targets: TopK, ids_NC: Tensor) -> Tensor:
        """Posterior mean ``[N, C]`` of the teacher's log-probs at ``ids_NC``, given each row's listed entries.

        Raises:
            TargetsError: it was learnt from a smaller vocabulary than the targets'.
        """
        if len(self.mean_V) < targets.vocab_size:
            raise TargetsError(f"the estimator has {len(self.mean_V)} ids, but the targets have {targets.vocab_size}")
        # Half precision has too few digits for a precision matrix.
        with torch.autocast(ids_NC.device.type, enabled=False):
            return self._predict(targets, ids_NC)

    def _predict(self, targets: TopK, ids_NC: Tensor) -> Tensor:
        known_NKR = self.factor_VR[targets.ids]
        known_NKR1 = torch.cat([known_NKR, torch.ones_like(known_NKR[:, :, :1])], 2)
        weighted_NKR1 = known_NKR1 / self.noise_V[targets.ids][:, :, None]
        rank = self.factor_VR.shape[1]
        prior_R1 = torch.ones(rank + 1, device=ids_NC.device)
        prior_R1[rank] = 1 / _LEVEL_VARIANCE
        precision_NR1R1 = known_NKR1.mT @ weighted_NKR1 + torch.diag(prior_R1)
        # An entry of -inf says nothing about other ids.
        possible_NK = targets.logprobs > -torch.inf
        surprise_NK = torch.where(possible_NK, targets.logprobs - self.mean_V[targets.ids], 0)
        evidence_NR11 = weighted_NKR1.mT @ surprise_NK.float()[:, :, None]
        # Cholesky, because a precision matrix is positive definite; and torch's batched LU gives wrong results, often
        # without an error, with several threads and about 160 unknowns.
        state_NR1 = torch.cholesky_solve(evidence_NR11, torch.linalg.cholesky(precision_NR1R1))[:, :, 0]
        seen_NC = (self.factor_VR[ids_NC] @ state_NR1[:, :rank, None])[:, :, 0]
        estimate_NC: Tensor = self.mean_V[ids_NC] + seen_NC + state_NR1[:, rank:]
        return estimate_NC.to(targets.logprobs.dtype)

    def to(self, device: torch.device | str) -> Estimator:
        """Copy to a device."""
        return Estimator(self.mean_V.to(device), self.factor_VR.to(device), self.noise_V.to(device))

    def save(self, path: str | Path) -> int:
        """Write a safetensors file, half precision; returns its bytes: 2 (R + 2) V and a header."""
        tensors = {"mean": self.mean_V, "factor": self.factor_VR, "noise": self.noise_V}
        save_file({name: value.half().cpu().contiguous() for name, value in tensors.items()}, path)
        return Path(path).stat().st_size

    @classmethod
    def load(cls, path: str | Path) -> Estimator:
        """Read what ``save`` wrote.

        Raises:
            TargetsError: the file isn't an estimator file.
        """
        try:
            tensors = {name: value.float() for name, value in load_file(path).items()}
            estimator = cls(tensors["mean"], tensors["factor"], tensors["noise"])
        except (OSError, KeyError, SafetensorError) as error:
            raise TargetsError(f"{path} is no estimator file: {error}") from error
        mean_V, factor_VR, noise_V = estimator.mean_V, estimator.factor_VR, estimator.noise_V
        if mean_V.dim() != 1 or noise_V.shape != mean_V.shape or factor_VR.shape[:-1] != mean_V.shape:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
            raise TargetsError(f"{path} is no estimator file: {shapes} must be mean [V], factor [V, R], noise [V]")
        if not all(bool(value.isfinite().all()) for value in tensors.values()) or not bool((noise_V > 0).all()):
            raise TargetsError(f"{path} is no estimator file: it holds NaN or infinity, or noise that isn't above 0")
        return estimator
