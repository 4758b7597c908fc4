"""A shard's header: the JSON attributes that say how large its arrays are and how to decode them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitcache.errors import CorruptCacheError, TargetsError
from logitcache.format.encoding_values import ValueKind
from logitcache.targets.beyond import Beyond
from logitcache.utils.validation import first_fault

FORMAT_VERSION: Literal[1] = 1


class Header(BaseModel):
    """The attributes of a stored shard.

    Attributes:
        logitcache_shard: version of the shard format.
        vocab_size: V, the length of the teacher's logit vector.
        tokens, targets: L and N.
        top_k: K.
        values: how the log-probs are stored.
        step: distance of neighbouring values in nats, a power of two, if they are stored as ``steps``; else 0.
        tail_samples, candidates: how many of the K entries, the last ones, are a sample of the tail, or candidates
            with the largest logits in a reference model; absent if there are none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    logitcache_shard: Literal[1]
    vocab_size: int = Field(ge=1, le=2**32)
    tokens: int = Field(ge=0, lt=2**40)
    targets: int = Field(ge=0, lt=2**32)
    top_k: int = Field(ge=1, lt=2**32)
    values: ValueKind
    step: float = Field(ge=0, le=2)
    tail_samples: int | None = Field(default=None, ge=1)
    candidates: int | None = Field(default=None, ge=1)

    @property
    def beyond(self) -> Beyond:
        """Which of the K entries were not chosen by rank."""
        return Beyond(self.tail_samples or 0, self.candidates or 0)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the decoded arrays that grow with tokens and targets."""
        return 5 * self.tokens + self.targets * (8 * self.top_k + 4)


def read_header(attributes: Mapping[str, Any]) -> Header:
    """Validate a stored shard's attributes.

    Raises:
        CorruptCacheError: they aren't a header, or contradict one another.
    """
    version = attributes.get("logitcache_shard")
    if version != FORMAT_VERSION:
        raise CorruptCacheError(f"not a shard of format {FORMAT_VERSION}: its header says {str(version)[:40]!r}")
    try:
        header = Header.model_validate(dict(attributes))
    except ValidationError as error:
        raise CorruptCacheError(f"the shard's header is not valid: {first_fault(error)}") from error
    if header.top_k > header.vocab_size:
        raise CorruptCacheError(f"the shard's header says top_k {header.top_k} of a vocabulary of {header.vocab_size}")
    try:
        header.beyond.check(header.top_k)
    except TargetsError as error:
        raise CorruptCacheError(f"the shard's header says {error}") from error
    is_power_of_two = header.step > 0 and np.frexp(header.step)[0] == 0.5
    if is_power_of_two != (header.values == "steps"):
        raise CorruptCacheError(f"the shard's header says step {header.step} for values stored as {header.values}")
    return header
