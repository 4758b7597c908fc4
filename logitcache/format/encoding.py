"""Encoding: turn the arrays of a shard into small integers, and back with at most a stated error.

No files are read or written here. ``encode_arrays`` turns a :class:`ShardArrays` into a few plain arrays and JSON
attributes (:class:`StoredShard`); a shard format (Zarr, Arrow) writes those; ``decode_arrays`` checks and decodes them.

Shape legend: S sequences, L tokens, N positions that have targets, K entries a position, E exceptions.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from logitcache.errors import ConfigError, CorruptCacheError
from logitcache.format.arrays import DIGEST_BYTES, ShardArrays
from logitcache.format.checks import check_arrays, last_positions
from logitcache.format.encoding_ids import decode_tokens, decode_topk_ids, encode_tokens, encode_topk_ids
from logitcache.format.encoding_values import (
    ValueKind,
    decode_logprobs,
    decode_residual,
    encode_logprobs,
    encode_residual,
)
from logitcache.format.header import FORMAT_VERSION, Header, read_header
from logitcache.format.stored import ArrayReader, StoredShard, to_planes
from logitcache.utils.validation import first_fault

Preset = Literal["exact", "half", "compact", "tiny"]
MAX_ERROR_RANGE = (2.0**-12, 1.0)
#: Optional numbers for each position, always stored as float32.
STATISTICS = ("log_partition", "logit_std")
_KINDS: dict[str, ValueKind] = {"exact": "float32", "half": "float16"}
DEFAULT_MAX_ERROR: dict[str, float] = {"exact": 0.0, "half": 1 / 64, "compact": 1 / 64, "tiny": 1 / 16}


class Encoding(BaseModel):
    """How log-probs are stored, and how large the error of a stored value may be.

    Attributes:
        preset: ``exact`` keeps float32; ``half`` float16; ``compact`` and ``tiny`` steps of ``2 * max_error`` nats.
        max_error: largest error of any stored log-prob, in nats. For ``compact`` and ``tiny`` it is rounded down to a
            power of two, so that decoding is exact in float32; the defaults are 1/64 and 1/16.
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

    @model_validator(mode="after")
    def _is_used(self) -> Encoding:
        if self.max_error is not None and self.preset in _KINDS:
            raise ValueError(f"max_error goes with compact or tiny; {self.preset} has a bound of its own")
        return self

    @property
    def bound(self) -> float:
        """Largest error of a stored log-prob that can occur, in nats; 0 for ``exact``."""
        if self.preset in ("exact", "half"):
            return DEFAULT_MAX_ERROR[self.preset]
        return self.step / 2

    @property
    def step(self) -> float:
        """Distance of neighbouring stored log-probs in nats, a power of two; 0 if values are stored as floats."""
        if self.preset in ("exact", "half"):
            return 0.0
        wanted = DEFAULT_MAX_ERROR[self.preset] if self.max_error is None else self.max_error
        return float(2.0 ** np.floor(np.log2(2 * wanted)))

    @property
    def kind(self) -> ValueKind:
        """How values are coded: ``float32``, ``float16`` or ``steps``."""
        return _KINDS.get(self.preset, "steps")

    @classmethod
    def checked(cls, preset: str, max_error: float | None) -> Encoding:
        """Make an encoding from a user's settings.

        Raises:
            ConfigError: a setting is not allowed; the message names it.
        """
        try:
            return cls.model_validate({"preset": preset, "max_error": max_error})
        except ValidationError as error:
            raise ConfigError(first_fault(error)) from error

    def same_as(self, other: Encoding) -> bool:
        """True if both store every log-prob in the same way, also if their settings differ."""
        return (self.kind, self.step) == (other.kind, other.step)

    def holds(self, other: Encoding) -> bool:
        """True if every value that ``other`` can decode to is stored without further error."""
        if self.kind == "float32" or self.same_as(other):
            return True
        if other.kind != "steps":
            return False
        # float16 holds every multiple of 1/32 from 0 to -64, the lowest value that is stored in it.
        return other.step >= (1 / 32 if self.kind == "float16" else self.step)


def encode_arrays(arrays: ShardArrays, encoding: Encoding) -> StoredShard:
    """Encode a shard's arrays.

    Raises:
        TargetsError: the arrays don't fit together, or hold NaN, +inf, a rising row or an id outside the vocabulary.
    """
    check_arrays(arrays)
    kind, step = encoding.kind, encoding.step
    stored: dict[str, NDArray[Any]] = {
        "sequence_lengths": np.diff(arrays.offsets_S1).astype(np.uint32),
        "sequence_digests": np.ascontiguousarray(arrays.sequence_digests_S16),
        "target_mask": np.packbits(arrays.target_mask_L, bitorder="little"),
    }
    stored |= encode_tokens(arrays.token_ids_L)
    stored |= encode_topk_ids(arrays.topk_ids_NK, _order_by_token(arrays.token_ids_L, arrays.target_mask_L))
    stored |= encode_logprobs(arrays.topk_logprobs_NK, kind, step)
    stored |= encode_residual(arrays.residual_logprob_N, kind, step)
    for name in STATISTICS:
        statistic_N = getattr(arrays, f"{name}_N")
        if statistic_N is not None:
            stored[name] = to_planes(np.ascontiguousarray(statistic_N, np.float32).view(np.uint32))
    header = Header(
        logitcache_shard=FORMAT_VERSION,
        vocab_size=arrays.vocab_size,
        tokens=arrays.tokens,
        targets=arrays.targets,
        top_k=arrays.k,
        values=kind,
        step=step,
        **arrays.beyond.recorded(),
    )
    return StoredShard(stored, header.model_dump(exclude_none=True))


def decode_arrays(stored: StoredShard, limit: int) -> ShardArrays:
    """Check and decode a stored shard, whose arrays may take at most ``limit`` bytes.

    Raises:
        CorruptCacheError: the stored arrays don't make a valid shard.
    """
    header = read_header(stored.attributes)
    if header.decoded_bytes > limit:
        raise CorruptCacheError(f"its header claims {header.decoded_bytes:,} bytes of arrays, too many for its size")
    arrays = ArrayReader(stored.arrays)
    offsets_S1 = _offsets(arrays, header.tokens)
    mask_L = _target_mask(arrays, header, offsets_S1)
    token_ids_L = decode_tokens(arrays, header.tokens)
    shape_KN = (header.top_k, header.targets)
    ids_KN = decode_topk_ids(arrays, shape_KN, _order_by_token(token_ids_L, mask_L), header.vocab_size)
    statistics = {
        f"{name}_N": arrays.planes(name, np.uint32, (header.targets,)).view(np.float32)
        for name in STATISTICS
        if name in arrays
    }
    decoded = ShardArrays(
        token_ids_L=token_ids_L,
        offsets_S1=offsets_S1,
        sequence_digests_S16=arrays.array("sequence_digests", np.uint8, (len(offsets_S1) - 1, DIGEST_BYTES)),
        target_mask_L=mask_L,
        topk_ids_NK=np.ascontiguousarray(ids_KN.T),
        topk_logprobs_NK=decode_logprobs(arrays, shape_KN, header.values, header.step),
        residual_logprob_N=decode_residual(arrays, header.targets, header.values, header.step),
        vocab_size=header.vocab_size,
        beyond=header.beyond,
        **statistics,
    )
    arrays.finish()
    return decoded


def _order_by_token(token_ids_L: NDArray[np.uint32], mask_L: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Order of the rows of targets by the token at their position: equal tokens often have equal classes."""
    return np.argsort(token_ids_L[mask_L], kind="stable")


def _offsets(arrays: ArrayReader, tokens: int) -> NDArray[np.int64]:
    lengths_S = arrays.array("sequence_lengths", np.uint32, (None,))
    offsets_S1 = np.zeros(len(lengths_S) + 1, np.int64)
    np.cumsum(lengths_S, dtype=np.int64, out=offsets_S1[1:])
    if offsets_S1[-1] != tokens:
        raise CorruptCacheError(f"the sequence lengths add up to {offsets_S1[-1]} tokens; the header says {tokens}")
    return offsets_S1


def _target_mask(arrays: ArrayReader, header: Header, offsets_S1: NDArray[np.int64]) -> NDArray[np.bool_]:
    packed = arrays.array("target_mask", np.uint8, (-(-header.tokens // 8),))
    mask_L = np.unpackbits(packed, count=header.tokens, bitorder="little").view(np.bool_)
    if np.count_nonzero(mask_L) != header.targets:
        raise CorruptCacheError(f"target_mask marks {np.count_nonzero(mask_L)} positions, not {header.targets}")
    if mask_L[last_positions(offsets_S1)].any():
        raise CorruptCacheError("target_mask marks the last token of a sequence, which has no next token to predict")
    return mask_L


def part_of(name: str) -> str:
    """Which part of a shard a stored array belongs to: ids, values, residual, tokens, statistics or rest."""
    prefixes = {"id": "ids", "logprob": "values", "residual": "residual", "token": "tokens"}
    if name in STATISTICS:
        return "statistics"
    return prefixes.get(name.split("_")[0], "rest")
