"""Measure the encoding on a shard: errors by rank, probability mass of the top k, bytes per token of each part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from logitcache.format.arrays import ShardArrays
from logitcache.format.encoding import Encoding, decode_arrays, part_of
from logitcache.format.formats import format_of
from logitcache.format.stored import size_limit

PERCENTILES = (1, 10, 50, 90, 99)


class RankError(BaseModel):
    """Error of the stored log-probs from rank ``first`` to rank ``last`` (1 is the most probable), in nats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int
    last: int
    max: float
    mean: float


class Calibration(BaseModel):
    """Measurements of the encoding, on the first shard of a cache.

    Attributes:
        tokens, targets: of the measured shard.
        bound: the largest error that the encoding allows, in nats.
        max_error, mean_error: error of the stored log-probs, in nats.
        by_rank: the same for ranges of ranks, each twice as long as the one before.
        residual_max_error, residual_mean_error: error of the residual's logarithm, in nats.
        mass_mean: mean probability mass of the top k.
        mass_percentiles: mass of the top k at each percentile.
        bytes_per_token: size of the shard's file over its tokens.
        parts: bytes per token of each part: ``ids``, ``values``, ``residual``, ``tokens``, ``statistics``, ``rest``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    targets: int
    bound: float
    max_error: float
    mean_error: float
    by_rank: tuple[RankError, ...]
    residual_max_error: float
    residual_mean_error: float
    mass_mean: float
    mass_percentiles: dict[str, float]
    bytes_per_token: float
    parts: dict[str, float]


def calibrate(arrays: ShardArrays, encoding: Encoding, payload: bytes) -> Calibration:
    """Compare a shard's payload with the arrays it was made from.

    Raises:
        CorruptCacheError: the payload can't be decoded.
    """
    shard_format = format_of(payload)
    stored = shard_format.read(payload)
    decoded = decode_arrays(stored, size_limit(len(payload)))
    sizes = {name: shard_format.compressed_bytes(name, array) for name, array in stored.arrays.items()}
    error_NK = _error(arrays.topk_logprobs_NK, decoded.topk_logprobs_NK)
    residual_error_N = _error(arrays.residual_logprob_N, decoded.residual_logprob_N)
    mass_N = np.exp(np.minimum(arrays.topk_logprobs_NK, 0), dtype=np.float64).sum(1) if arrays.targets else np.zeros(0)
    percentiles = np.percentile(mass_N, PERCENTILES) if arrays.targets else []
    tokens = max(arrays.tokens, 1)
    return Calibration(
        tokens=arrays.tokens,
        targets=arrays.targets,
        bound=encoding.bound,
        max_error=_largest(error_NK),
        mean_error=_mean(error_NK),
        by_rank=tuple(_by_rank(error_NK)),
        residual_max_error=_largest(residual_error_N),
        residual_mean_error=_mean(residual_error_N),
        mass_mean=_mean(mass_N),
        mass_percentiles={str(p): _short(value) for p, value in zip(PERCENTILES, percentiles, strict=False)},
        bytes_per_token=_short(len(payload) / tokens),
        parts=_parts(sizes, len(payload), tokens),
    )


def _error(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float64]:
    same = before == after  # -inf - -inf would be NaN
    wide = np.where(same, 0.0, before.astype(np.float64))
    error: NDArray[np.float64] = np.abs(wide - np.where(same, 0.0, after.astype(np.float64)))
    return error


def _by_rank(error_NK: NDArray[np.float64]) -> Iterator[RankError]:
    first, k = 1, error_NK.shape[1]
    while first <= k:
        last = min(max(first, 2 * (first - 1)), k)
        part = error_NK[:, first - 1 : last]
        yield RankError(first=first, last=last, max=_largest(part), mean=_mean(part))
        first = last + 1


def _parts(sizes: Mapping[str, int], total: int, tokens: int) -> dict[str, float]:
    parts = {"rest": total - sum(sizes.values())}  # the container itself
    for name, size in sizes.items():
        parts[part_of(name)] = parts.get(part_of(name), 0) + size
    return {part: _short(size / tokens) for part, size in sorted(parts.items())}


def _largest(values: NDArray[Any]) -> float:
    return float(values.max()) if values.size else 0.0


def _mean(values: NDArray[Any]) -> float:
    return _short(float(values.mean())) if values.size else 0.0


def _short(value: float) -> float:
    """Six significant digits, because people read the manifest too."""
    return float(f"{value:.6g}")
