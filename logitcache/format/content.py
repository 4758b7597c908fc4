"""Checks of a decoded shard's content that decoding doesn't make.

Shape legend: S sequences, L tokens of all of them, N positions that have targets, K entries a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from logitcache.format.arrays import ShardArrays, sequence_digest
from logitcache.format.manifest import Manifest

#: Rounding of float32 sums over up to V terms, in nats; it is added to the encoding's bound.
_MASS_SLACK = 1e-2


def content_faults(arrays: ShardArrays, manifest: Manifest) -> Iterator[str]:
    """Yield one sentence for each fault of a shard's content."""
    if arrays.tokens and int(arrays.token_ids_L.max()) >= manifest.provenance.vocab_size:
        yield f"token id {int(arrays.token_ids_L.max())} is outside the vocabulary"
    lengths_S = np.diff(arrays.offsets_S1)
    last = arrays.offsets_S1[1:][lengths_S > 0] - 1
    if arrays.target_mask_L[last].any():
        yield "a sequence's last token has targets, though no token follows it"
    sorted_NK = np.sort(arrays.topk_ids_NK, axis=1)
    yield from _first_row((sorted_NK[:, 1:] == sorted_NK[:, :-1]).any(1), "lists an id twice")
    logprobs_NK = arrays.topk_logprobs_NK
    yield from _first_row((logprobs_NK[:, 1:] > logprobs_NK[:, :-1]).any(1), "has log-probs that rise along its row")
    bound = manifest.encoding.bound + _MASS_SLACK
    mass_N = np.logaddexp(
        np.logaddexp.reduce(logprobs_NK.astype(np.float64), axis=1), arrays.residual_logprob_N.astype(np.float64)
    )
    yield from _first_row(
        ~(np.abs(mass_N) <= bound), f"has a probability mass other than 1, by more than {bound:.4f} nat"
    )
    yield from _digest_faults(arrays)


def _first_row(wrong_N: Any, what: str) -> Iterator[str]:
    if wrong_N.any():
        yield f"position {int(np.argmax(wrong_N)):,} of the shard's targets {what} ({int(wrong_N.sum()):,} do)"


def _digest_faults(arrays: ShardArrays) -> Iterator[str]:
    for index in range(arrays.sequences):
        tokens = slice(int(arrays.offsets_S1[index]), int(arrays.offsets_S1[index + 1]))
        digest = sequence_digest(arrays.token_ids_L[tokens], arrays.target_mask_L[tokens])
        if digest != arrays.sequence_digests_S16[index].tobytes():
            yield f"sequence {index} of the shard has other tokens than its digest says"
            return
