"""Make a cache from other caches: a part of one, or several joined. Stored values never change.

Shape legend: S sequences, L tokens, N positions that have targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.format.arrays import ShardArrays
from logitcache.format.calibrate import Calibration
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName, encode_shard
from logitcache.format.manifest import TABLE_NAME, TOKENIZER_DIR, Card, Manifest, Provenance, Totals, file_record
from logitcache.format.table import COUNTS, ShardEntry, shard_path, write_table


class CorpusDigest:
    """The digest that a dump gives its corpus: over the tokenised sequences in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, arrays: ShardArrays) -> None:
        """Add a shard's sequences."""
        for start, stop in zip(arrays.offsets_S1[:-1].tolist(), arrays.offsets_S1[1:].tolist(), strict=True):
            self._digest.update((stop - start).to_bytes(8, "little"))
            self._digest.update(arrays.token_ids_L[start:stop].astype("<u4").tobytes())
            self._digest.update(arrays.target_mask_L[start:stop].tobytes())

    def value(self) -> str:
        """The digest, ``sha256:…``."""
        return "sha256:" + self._digest.hexdigest()


def keep_sequences(arrays: ShardArrays, keep_S: NDArray[np.bool_]) -> ShardArrays:
    """The shard with only some of its sequences, in the same order."""
    lengths_S = np.diff(arrays.offsets_S1)
    keep_L = np.repeat(keep_S, lengths_S)
    keep_N = keep_L[arrays.target_mask_L]
    partition_N, std_N = arrays.log_partition_N, arrays.logit_std_N
    return replace(
        arrays,
        token_ids_L=arrays.token_ids_L[keep_L],
        offsets_S1=np.concatenate([[0], np.cumsum(lengths_S[keep_S])]).astype(np.int64),
        sequence_digests_S16=arrays.sequence_digests_S16[keep_S],
        target_mask_L=arrays.target_mask_L[keep_L],
        topk_ids_NK=arrays.topk_ids_NK[keep_N],
        topk_logprobs_NK=arrays.topk_logprobs_NK[keep_N],
        residual_logprob_N=arrays.residual_logprob_N[keep_N],
        log_partition_N=None if partition_N is None else partition_N[keep_N],
        logit_std_N=None if std_N is None else std_N[keep_N],
    )


def encode_part(arrays: ShardArrays, encoding: Encoding, shard_format: ShardFormatName) -> tuple[ShardEntry, bytes]:
    """A shard's row of the table, and its bytes. Encoding decoded values again loses nothing."""
    payload = encode_shard(arrays, encoding, shard_format)
    sha256 = hashlib.sha256(payload).hexdigest()
    path = shard_path(sha256, shard_format)
    return ShardEntry(path, sha256, len(payload), arrays.sequences, arrays.tokens, arrays.targets), payload


def derived_files(
    parent: Manifest,
    provenance: Provenance,
    entries: Sequence[ShardEntry],
    tokenizer: dict[str, bytes],
    *,
    card: Card | None = None,
    calibration: Calibration | None = None,
) -> tuple[bytes, dict[str, bytes]]:
    """The manifest's bytes and the other small files of a cache of these shards.

    Args:
        parent: gives encoding and shard format.
        provenance: of the new cache.
        entries: rows of its shard table.
        tokenizer: content of each file, by file name without a directory.
        card, calibration: of the new cache.

    Raises:
        ValidationError: a value can't be written into a manifest.
    """
    table = write_table(entries)
    sums: dict[str, Any] = {name: sum(getattr(entry, name) for entry in entries) for name in COUNTS}
    manifest = Manifest(
        provenance=provenance,
        encoding=parent.encoding,
        shard_format=parent.shard_format,
        totals=Totals(shards=len(entries), **sums),
        shard_table=file_record(table),
        tokenizer={name: file_record(content) for name, content in tokenizer.items()},
        calibration=calibration,
        card=card or Card(),
    )
    files = {f"{TOKENIZER_DIR}/{name}": content for name, content in tokenizer.items()}
    return manifest.to_bytes(), {**files, TABLE_NAME: table}
