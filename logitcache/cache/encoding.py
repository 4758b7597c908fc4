"""Encoding: how the arrays of a shard become small integers, and back, within a stated bound.

Nothing here knows about files. ``encode_arrays`` turns a :class:`ShardArrays` into a few plain arrays and JSON
attributes (:class:`StoredShard`); a shard format (Zarr, Arrow) writes those; ``decode_arrays`` checks and undoes them.

Shape legend: S sequences, L tokens, N positions that have targets, K entries a position, E exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from logitcache.cache.arrays import DIGEST_BYTES, ShardArrays
from logitcache.cache.encoding_ids import look_up, rank_ids
from logitcache.cache.encoding_values import Codes, accumulate, difference, from_codes, to_codes
from logitcache.cache.stored import StoredShard, from_planes, to_planes
from logitcache.errors import CorruptCacheError, TargetsError

Preset = Literal["exact", "half", "compact", "tiny"]
MAX_ERROR_RANGE = (2.0**-12, 1.0)
FORMAT_VERSION = 1
#: The residual is one number a position and holds much of the mass: it is kept this many times finer than an entry.
RESIDUAL_FINER = 4
ValueKind = Literal["float32", "float16", "steps"]
_KINDS: dict[str, ValueKind] = {"exact": "float32", "half": "float16"}
DEFAULT_MAX_ERROR: dict[str, float] = {"exact": 0.0, "half": 1 / 64, "compact": 1 / 64, "tiny": 1 / 16}


class Encoding(BaseModel):
    """How log-probs are stored, and how far a stored value may be from the one that came in.

    Attributes:
        preset: ``exact`` keeps float32; ``half`` float16; ``compact`` and ``tiny`` steps of ``2 * max_error`` nats.
        max_error: largest error of any stored log-prob, in nats. For ``compact`` and ``tiny`` it is rounded down to a
            power of two, so that decoding is exact in float32; left out, it is 1/64 and 1/16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset = "compact"
    max_error: float | None = None

    @field_validator("max_error")
    @classmethod
    def _in_range(cls, value: float | None) -> float | None:
        low, high = MAX_ERROR_RANGE
        if value is not None and not low <= value <= high:
            raise ValueError(f"max_error {value} nats must be from 2^-12 to 1")
        return value

    @property
    def bound(self) -> float:
        """Largest error of a stored log-prob that can occur, in nats; 0 for ``exact``."""
        if self.preset in ("exact", "half"):
            return DEFAULT_MAX_ERROR[self.preset]
        return self.step / 2

    @property
    def step(self) -> float:
        """Distance of neighbouring stored log-probs in nats, a power of two; 0 where values are floats."""
        if self.preset in ("exact", "half"):
            return 0.0
        wanted = DEFAULT_MAX_ERROR[self.preset] if self.max_error is None else self.max_error
        return float(2.0 ** np.floor(np.log2(2 * wanted)))

    @property
    def kind(self) -> ValueKind:
        """How values are coded: ``float32``, ``float16`` or ``steps``."""
        return _KINDS.get(self.preset, "steps")


def encode_arrays(arrays: ShardArrays, encoding: Encoding) -> StoredShard:
    """Encode a shard's arrays.

    Raises:
        TargetsError: the arrays don't fit together, or hold NaN, +inf, a rising row or an id outside the vocabulary.
    """
    _check_arrays(arrays)
    stored: dict[str, NDArray[Any]] = {
        "sequence_lengths": np.diff(arrays.offsets_S1).astype(np.uint32),
        "sequence_digests": np.ascontiguousarray(arrays.sequence_digests_S16),
        "target_mask": np.packbits(arrays.target_mask_L, bitorder="little"),
    }
    stored["token_table"], token_codes = rank_ids(arrays.token_ids_L)
    stored["token_codes"] = to_planes(token_codes)
    stored["id_table"], id_codes_NK = rank_ids(arrays.topk_ids_NK)
    stored["id_codes"] = to_planes(np.ascontiguousarray(id_codes_NK.T))
    values = to_codes(arrays.topk_logprobs_NK, encoding.kind, encoding.step)
    stored["logprob_steps"] = to_planes(difference(values.codes))
    stored |= _exceptions("logprob", values)
    residual = to_codes(arrays.residual_logprob_N, encoding.kind, encoding.step / RESIDUAL_FINER)
    stored["residual_codes"] = to_planes(residual.codes)
    stored |= _exceptions("residual", residual)
    for name in ("log_partition", "logit_std"):
        statistic_N = getattr(arrays, f"{name}_N")
        if statistic_N is not None:
            stored[name] = to_planes(np.ascontiguousarray(statistic_N, np.float32).view(np.uint32))
    attributes = {
        "logitcache_shard": FORMAT_VERSION,
        "vocab_size": arrays.vocab_size,
        "tokens": arrays.tokens,
        "targets": arrays.targets,
        "top_k": arrays.k,
        "values": encoding.kind,
        "step": encoding.step,
        "residual_step": encoding.step / RESIDUAL_FINER,
    }
    return StoredShard(stored, attributes)


def decode_arrays(stored: StoredShard) -> ShardArrays:
    """Check and decode a stored shard.

    Raises:
        CorruptCacheError: the stored arrays don't make a valid shard.
    """
    head = _read_attributes(stored.attributes)
    get = _Getter(stored.arrays)
    lengths_S = get("sequence_lengths", np.uint32, (None,))
    offsets_S1 = np.concatenate([[0], np.cumsum(lengths_S, dtype=np.int64)]).astype(np.int64)
    if offsets_S1[-1] != head.tokens:
        raise CorruptCacheError(f"sequence lengths add up to {offsets_S1[-1]} tokens; the header says {head.tokens}")
    packed = get("target_mask", np.uint8, (-(-head.tokens // 8),))
    mask_L = np.unpackbits(packed, count=head.tokens, bitorder="little").view(np.bool_)
    if np.count_nonzero(mask_L) != head.targets:
        raise CorruptCacheError(f"the target mask marks {np.count_nonzero(mask_L)} positions, not {head.targets}")
    token_codes = from_planes(get("token_codes", np.uint8, (None, head.tokens)), np.uint32)
    token_ids_L = look_up(get("token_table", np.uint32, (None,)), token_codes, "token_codes")
    shape_KN = (head.top_k, head.targets)
    id_codes_KN = from_planes(get("id_codes", np.uint8, (None, *shape_KN)), np.uint32)
    topk_ids_NK = look_up(get("id_table", np.uint32, (None,)), np.ascontiguousarray(id_codes_KN.T), "id_codes")
    if topk_ids_NK.size and int(topk_ids_NK.max()) >= head.vocab_size:
        raise CorruptCacheError(f"top-k id {int(topk_ids_NK.max())} is outside the vocabulary of {head.vocab_size}")
    dtype = np.uint32 if head.values == "float32" else np.uint16
    steps_KN = from_planes(get("logprob_steps", np.uint8, (None, *shape_KN)), dtype)
    values = _stored_codes(get, "logprob", np.ascontiguousarray(accumulate(steps_KN).T))
    residual = _stored_codes(get, "residual", from_planes(get("residual_codes", np.uint8, (None, head.targets)), dtype))
    statistics = {f"{name}_N": _statistic(get, name, head.targets) for name in ("log_partition", "logit_std")}
    arrays = ShardArrays(
        token_ids_L=token_ids_L,
        offsets_S1=offsets_S1,
        sequence_digests_S16=get("sequence_digests", np.uint8, (len(lengths_S), DIGEST_BYTES)),
        target_mask_L=mask_L,
        topk_ids_NK=topk_ids_NK,
        topk_logprobs_NK=from_codes(values, head.values, head.step, "logprob"),
        residual_logprob_N=from_codes(residual, head.values, head.residual_step, "residual"),
        vocab_size=head.vocab_size,
        **statistics,
    )
    get.finish()
    return arrays


def part_of(name: str) -> str:
    """Which part of a shard a stored array belongs to: ids, values, residual, tokens, statistics or rest."""
    prefixes = {"id": "ids", "logprob": "values", "residual": "residual", "token": "tokens"}
    if name in ("log_partition", "logit_std"):
        return "statistics"
    return prefixes.get(name.split("_")[0], "rest")


class _Header(BaseModel):
    """A stored shard's attributes, validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    logitcache_shard: Literal[1]
    vocab_size: int = Field(ge=1, le=2**32)
    tokens: int = Field(ge=0, lt=2**40)
    targets: int = Field(ge=0, lt=2**32)
    top_k: int = Field(ge=1, le=2**32)
    values: ValueKind
    step: float
    residual_step: float


def _read_attributes(attributes: Mapping[str, Any]) -> _Header:
    try:
        header = _Header.model_validate(dict(attributes))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CorruptCacheError(f"the shard's header is not valid: {place}: {first['msg']}") from error
    if header.top_k > header.vocab_size:
        raise CorruptCacheError(f"the shard's header says top_k {header.top_k} of a vocabulary of {header.vocab_size}")
    for step in (header.step, header.residual_step):
        is_power = 0 < step <= 2 and np.frexp(step)[0] == 0.5
        if not (is_power if header.values == "steps" else step == 0):
            raise CorruptCacheError(f"the shard's header says step {step} for values stored as {header.values}")
    return header


class _Getter:
    """Hands out stored arrays by name with their dtype and shape checked, and notices those nobody asked for."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._left = dict(arrays)

    def __call__(self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
        array = self._left.pop(name, None)
        if array is None:
            raise CorruptCacheError(f"the array {name} is missing")
        fits = array.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            raise CorruptCacheError(f"the array {name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
        return array

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def finish(self) -> None:
        if self._left:
            raise CorruptCacheError(f"unknown arrays: {', '.join(sorted(self._left))}")


def _exceptions(name: str, codes: Codes) -> dict[str, NDArray[Any]]:
    if not len(codes.exception_index_E):
        return {}
    return {
        f"{name}_exception_index": codes.exception_index_E,
        f"{name}_exception_value": codes.exception_value_E,
    }


def _stored_codes(get: _Getter, name: str, codes: NDArray[Any]) -> Codes:
    if f"{name}_exception_index" not in get:
        return Codes(codes, np.zeros(0, np.uint32), np.zeros(0, np.float32))
    index = get(f"{name}_exception_index", np.uint32, (None,))
    return Codes(codes, index, get(f"{name}_exception_value", np.float32, (None,)))


def _statistic(get: _Getter, name: str, targets: int) -> NDArray[np.float32] | None:
    if name not in get:
        return None
    return from_planes(get(name, np.uint8, (None, targets)), np.uint32).view(np.float32)


def _check_arrays(arrays: ShardArrays) -> None:
    """Refuse arrays that don't fit together; the messages name the field."""
    tokens, targets, k = arrays.tokens, arrays.targets, arrays.k
    offsets = arrays.offsets_S1
    shapes = {
        "target_mask_L": (tokens,),
        "topk_ids_NK": (targets, k),
        "topk_logprobs_NK": (targets, k),
        "sequence_digests_S16": (arrays.sequences, DIGEST_BYTES),
        "log_partition_N": (targets,),
        "logit_std_N": (targets,),
    }
    columns = arrays.columns()
    for name, shape in shapes.items():
        if name in columns and columns[name].shape != shape:
            raise TargetsError(
                f"{name} is {columns[name].shape}; with the other arrays of the shard it must be {shape}"
            )
    if not 1 <= k <= arrays.vocab_size <= 1 << 32:
        raise TargetsError(f"K = {k} of a vocabulary of {arrays.vocab_size}: need 1 <= K <= V <= 2^32")
    if targets * k >= 1 << 32:
        raise TargetsError(f"{targets} positions of {k} entries are too many for one shard: make shards smaller")
    if offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 0).any():
        raise TargetsError(f"offsets_S1 must rise from 0 to the number of tokens, {tokens}")
    if np.count_nonzero(arrays.target_mask_L) != targets:
        raise TargetsError(
            f"target_mask_L marks {np.count_nonzero(arrays.target_mask_L)} positions; targets are {targets}"
        )
    ends = offsets[1:][np.diff(offsets) > 0] - 1
    if arrays.target_mask_L[ends].any():
        raise TargetsError("target_mask_L marks a sequence's last token, which has no next token to predict")
    if targets and int(arrays.topk_ids_NK.max()) >= arrays.vocab_size:
        raise TargetsError(f"top-k id {int(arrays.topk_ids_NK.max())} is outside the vocabulary of {arrays.vocab_size}")
    _check_values(arrays)


def _check_values(arrays: ShardArrays) -> None:
    logprobs_NK = arrays.topk_logprobs_NK
    falls = (logprobs_NK[:, 1:] <= logprobs_NK[:, :-1]).all()
    if arrays.targets and not (falls and (logprobs_NK[:, 0] < np.inf).all()):
        raise TargetsError("topk_logprobs_NK must not rise along K, and must hold neither NaN nor +inf")
    if not (arrays.residual_logprob_N < np.inf).all():
        raise TargetsError("residual_logprob_N must hold neither NaN nor +inf")
