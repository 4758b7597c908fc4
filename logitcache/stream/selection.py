"""Which sequences to use, by their length, and which of their positions, by the teacher's probabilities.

Shape legend: N positions with targets, K entries a position, S sequences of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import ConfigError
from logitcache.format.arrays import ShardArrays


@dataclass(frozen=True)
class Selection:
    """Keep positions that meet all conditions; the defaults keep all.

    Attributes:
        min_mass: the smallest probability mass of the cached top K.
        min_confidence, max_confidence: range of the teacher's largest probability.
        max_entropy: the largest entropy of the teacher in nats; all ids outside the top K count as one event.
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
        """``[N]``, True where a position is kept."""
        logprobs_NK, rest_N = arrays.topk_logprobs_NK.astype(np.float64), arrays.residual_logprob_N.astype(np.float64)
        confidence_N, mass_N = np.exp(logprobs_NK[:, 0]), -np.expm1(np.minimum(rest_N, 0))
        kept_N: NDArray[np.bool_] = (mass_N >= self.min_mass) & (confidence_N >= self.min_confidence)
        kept_N &= confidence_N <= self.max_confidence
        if self.max_entropy is not None:
            kept_N &= _entropy(np.concatenate([logprobs_NK, rest_N[:, None]], axis=1)) <= self.max_entropy
        return kept_N


@dataclass(frozen=True)
class LengthFilter:
    """Keep sequences by their number of tokens; the defaults keep all."""

    min_length: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_length", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value} is not allowed; it must be at least 1")
        if None not in (self.min_length, self.max_length) and self.min_length > self.max_length:  # type: ignore[operator]
            raise ConfigError(f"min_length = {self.min_length} is above max_length = {self.max_length}")

    @property
    def keeps_all(self) -> bool:
        return self == LengthFilter()

    def keep(self, lengths_S: NDArray[Any]) -> NDArray[np.bool_]:
        """``[S]``, True where a sequence is kept."""
        kept_S = np.ones(len(lengths_S), dtype=np.bool_)
        if self.min_length is not None:
            kept_S &= lengths_S >= self.min_length
        if self.max_length is not None:
            kept_S &= lengths_S <= self.max_length
        return kept_S

    def __str__(self) -> str:
        parts = {"min_length": self.min_length, "max_length": self.max_length}
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


EVERY_LENGTH = LengthFilter()


def _entropy(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = np.isfinite(logprobs)
    safe = np.where(finite, logprobs, 0.0)
    terms: NDArray[np.float64] = np.where(finite, -np.exp(safe) * safe, 0.0)
    entropy: NDArray[np.float64] = terms.sum(axis=1)
    return entropy
