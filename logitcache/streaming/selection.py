"""Which positions to learn from, by what the teacher thinks of them; tokens and sequences stay as they are.

Shape legend: N positions with targets, K entries a position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitcache.cache.arrays import ShardArrays
from logitcache.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """Keep positions that meet every condition; the defaults keep all.

    Attributes:
        min_mass: least share of the probability that the cached top K must cover.
        min_confidence, max_confidence: range of the teacher's largest probability.
        max_entropy: most entropy of the teacher in nats, the ids outside the top K counted as one event.
    """

    min_mass: float = 0.0
    min_confidence: float = 0.0
    max_confidence: float = 1.0
    max_entropy: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_mass", "min_confidence", "max_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)} is not allowed; it must be from 0 to 1")
        if self.max_entropy is not None and not self.max_entropy >= 0:
            raise ConfigError(f"max_entropy = {self.max_entropy} is not allowed; it must be 0 or above, in nats")

    @property
    def keeps_all(self) -> bool:
        return self == Selection()

    def keep(self, arrays: ShardArrays) -> NDArray[np.bool_]:
        """``[N]``, True where a position is learned from."""
        logprobs_NK, rest_N = arrays.topk_logprobs_NK.astype(np.float64), arrays.residual_logprob_N.astype(np.float64)
        confidence_N, mass_N = np.exp(logprobs_NK[:, 0]), -np.expm1(np.minimum(rest_N, 0))
        kept_N: NDArray[np.bool_] = (mass_N >= self.min_mass) & (confidence_N >= self.min_confidence)
        kept_N &= confidence_N <= self.max_confidence
        if self.max_entropy is not None:
            kept_N &= _entropy(np.concatenate([logprobs_NK, rest_N[:, None]], axis=1)) <= self.max_entropy
        return kept_N


def _entropy(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = np.isfinite(logprobs)
    safe = np.where(finite, logprobs, 0.0)
    terms: NDArray[np.float64] = np.where(finite, -np.exp(safe) * safe, 0.0)
    entropy: NDArray[np.float64] = terms.sum(axis=1)
    return entropy
