"""Import log-probs that other programs wrote: make a cache from rows of tokens and top-k lists.

Shape legend: L tokens of a sequence, M of its positions that have targets, N positions of a shard that have targets, K
entries per position.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from logitcache.cache.derive import CorpusDigest
from logitcache.cache.install import claim_directory
from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.cache.reader import Cache, open_cache
from logitcache.cache.tokenizer import tokenizer_digest, tokenizer_files
from logitcache.errors import ConfigError, DataError, ModelError, OutputExistsError
from logitcache.exchange.rows import Row
from logitcache.format.arrays import ShardArrays, sequence_digest
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName, encode_shard
from logitcache.format.manifest import MANIFEST_NAME, Card, Provenance, Teacher
from logitcache.format.table import ShardEntry
from logitcache.models.hub import fetch
from logitcache.stores.url import local_path
from logitcache.utils.progress import Report, silent
from logitcache.utils.reasons import reason
from logitcache.utils.validation import first_fault

Kind = Literal["openai", "vllm", "distillkit"]
#: A list's probabilities may add up to this much more than 1, by rounding. With more, they aren't log-probs.
_EXCESS = 0.05
#: Residual probability of a list that adds up to 1; its true value is too small to compute from the list.
_LEAST_REST = 1e-9


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    Attributes:
        cache: the new cache, opened.
        rows: how many rows were read.
        skipped_positions: positions without targets, because fewer than K of their entries can be used.
        skipped_rows: rows left out, because none of their positions has targets.
    """

    cache: Cache = field(repr=False)
    rows: int
    skipped_positions: int
    skipped_rows: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        totals = self.cache.manifest.totals.model_dump()
        skipped = {"skipped_positions": self.skipped_positions, "skipped_rows": self.skipped_rows}
        return {"path": str(self.cache.root), "digest": self.cache.digest, "rows": self.rows, **skipped, **totals}


def import_logprobs(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    kind: Kind,
    tokenizer: str,
    teacher: str,
    top_k: int,
    vocab_size: int | None = None,
    encoding: Encoding | None = None,
    shard_format: ShardFormatName = "zarr",
    shard_tokens: int = 65_536,
    card: Card | None = None,
    progress: Report = silent,
) -> Imported:
    """Turn other programs' log-prob dumps into a cache.

    Args:
        files: JSON lines for ``openai`` and ``vllm``; for ``distillkit`` a directory of Parquet files with
            ``compression_config.yaml``, or Parquet files in such a directory.
        out: the cache's directory; absent, empty, or left by an import that was killed. A failure leaves nothing.
        kind: which program wrote the files.
        tokenizer: directory or hub id of the teacher's tokenizer.
        teacher: name of the teacher. The files don't say which weights were used.
        top_k: K. Positions with fewer entries get no targets; longer lists keep their best K.
        vocab_size: the length of the teacher's logit vector, if it isn't the tokenizer's.
        encoding, shard_format, shard_tokens, card: the same as for a dump.
        progress: called as rows are read.

    Raises:
        DataError: a file isn't of this kind, or holds something other than log-probs; the message names the row.
        ConfigError, ModelError, OutputExistsError, StorageError: a setting, the tokenizer or the output can't be used.
    """
    root = local_path(out, "import into a directory, then `logitcache push` that")
    if (root / MANIFEST_NAME).exists():
        raise OutputExistsError(f"{root} already holds a cache: choose another place")
    loaded = _load_tokenizer(tokenizer)
    size = vocab_size or len(loaded)
    if not 1 <= top_k <= size:
        raise ConfigError(f"top_k is {top_k}; it must be from 1 to the vocabulary's {size:,}")
    encoding = encoding or Encoding()
    builder = _Builder(root, top_k, size, encoding, shard_format, shard_tokens)
    provenance = _provenance(kind, teacher, tokenizer_digest(loaded), top_k, size)
    with claim_directory(root, f"import {kind}", keep_shards=False):
        for row in _rows(kind, [Path(file) for file in files], loaded):
            builder.add(row)
            progress("import", builder.rows, None, "rows")
        builder.flush()
        if not builder.entries:
            raise DataError(f"no row has a position with {top_k} usable entries: give a smaller --top-k")
        provenance = provenance.model_copy(update={"corpus_digest": builder.corpus.value()})
        finalize_cache(root, builder.entries, provenance, encoding, shard_format, tokenizer_files(loaded), card=card)
    return Imported(open_cache(root), builder.rows, builder.skipped_positions, builder.skipped_rows)


def _provenance(kind: Kind, teacher: str, tokenizer: str, top_k: int, vocab_size: int) -> Provenance:
    """The manifest's provenance, checked before the rows are read. The corpus digest is added later."""
    try:
        return Provenance(
            teacher=Teacher(name=teacher, dtype="unknown", engine=kind),
            tokenizer_digest=tokenizer,
            corpus_digest=CorpusDigest().value(),
            top_k=top_k,
            vocab_size=vocab_size,
            positions="imported",
            settings={"imported": kind},
            software={"logitcache": importlib.metadata.version("logitcache")},
        )
    except ValidationError as error:
        raise ConfigError(f"teacher {teacher!r} can't be written into a manifest: {first_fault(error)}") from error


def _rows(kind: Kind, files: list[Path], tokenizer: Any) -> Iterator[Row]:
    if kind == "vllm":
        from logitcache.exchange.json_dumps import vllm_rows

        return vllm_rows(files)
    if kind == "openai":
        from logitcache.exchange.json_dumps import openai_rows

        return openai_rows(files, tokenizer)
    if kind == "distillkit":
        from logitcache.exchange.distillkit import distillkit_rows

        return distillkit_rows(files)
    raise ConfigError(f"kind {kind!r} is not known: choose openai, vllm or distillkit")


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    if not Path(name).is_dir():
        fetch("tokenizer", name, ("tokenizer*",))
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"can't load the tokenizer {name}: {reason(error)}") from error


class _Builder:
    """Collect rows into shards."""

    def __init__(
        self, root: Path, top_k: int, vocab_size: int, encoding: Encoding, shard_format: ShardFormatName, tokens: int
    ) -> None:
        self.root, self.top_k, self.vocab_size, self.shard_tokens = root, top_k, vocab_size, tokens
        self.encoding, self.shard_format = encoding, shard_format
        self.entries: list[ShardEntry] = []
        self.corpus = CorpusDigest()
        self.rows = self.skipped_positions = self.skipped_rows = 0
        self._tokens: list[NDArray[np.uint32]] = []
        self._masks: list[NDArray[np.bool_]] = []
        self._ids: list[NDArray[np.int64]] = []
        self._logprobs: list[NDArray[np.float64]] = []

    def add(self, row: Row) -> None:
        """Add a row; a full shard is published."""
        self.rows += 1
        self.skipped_positions += row.skipped
        if len(row.token_ids_L) and int(row.token_ids_L.max()) >= self.vocab_size:
            raise DataError(f"{row.where}: token id {int(row.token_ids_L.max())} is outside the vocabulary")
        mask_L = np.zeros(len(row.token_ids_L), np.bool_)
        for position, ids, logprobs in zip(row.positions_M.tolist(), row.ids, row.logprobs, strict=True):
            if len(ids) < self.top_k:
                self.skipped_positions += 1
                continue
            best = np.argsort(-logprobs, kind="stable")[: self.top_k]
            self._check(row.where, position, ids[best], logprobs[best], len(mask_L))
            mask_L[position] = True
            self._ids.append(ids[best])
            self._logprobs.append(logprobs[best])
        if not mask_L.any():
            self.skipped_rows += 1
            return
        self._tokens.append(row.token_ids_L)
        self._masks.append(mask_L)
        if sum(map(len, self._tokens)) >= self.shard_tokens:
            self.flush()

    def _check(
        self, where: str, position: int, ids: NDArray[np.int64], logprobs: NDArray[np.float64], length: int
    ) -> None:
        place = f"{where}, position {position}"
        if not 0 <= position < length - 1:
            raise DataError(f"{place}: no token follows this position in a row of {length} tokens")
        if ids.min() < 0 or ids.max() >= self.vocab_size or len(np.unique(ids)) < len(ids):
            raise DataError(f"{place}: its ids repeat, or are outside the vocabulary of {self.vocab_size:,}")
        if not np.isfinite(logprobs).all() or np.exp(logprobs).sum() > 1 + _EXCESS:
            raise DataError(
                f"{place}: these are not log-probs at temperature 1: they add up to more than 1, or are NaN"
            )

    def flush(self) -> None:
        """Publish the collected rows as a shard."""
        if not self._tokens:
            return
        logprobs_NK = np.stack(self._logprobs)
        mass_N = np.exp(logprobs_NK).sum(1)
        # By rounding a list may add up to slightly more than 1. It is scaled down to 1, and its residual is tiny.
        logprobs_NK -= np.log(np.maximum(mass_N, 1.0))[:, None]
        residual_N = np.log(np.maximum(1.0 - np.exp(logprobs_NK).sum(1), _LEAST_REST))
        digests = [sequence_digest(t, m) for t, m in zip(self._tokens, self._masks, strict=True)]
        arrays = ShardArrays(
            token_ids_L=np.concatenate(self._tokens),
            offsets_S1=np.concatenate([[0], np.cumsum([len(tokens) for tokens in self._tokens])]).astype(np.int64),
            sequence_digests_S16=np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1),
            target_mask_L=np.concatenate(self._masks),
            topk_ids_NK=np.stack(self._ids).astype(np.uint32),
            topk_logprobs_NK=logprobs_NK.astype(np.float32),
            residual_logprob_N=residual_N.astype(np.float32),
            vocab_size=self.vocab_size,
        )
        self.corpus.add(arrays)
        payload = encode_shard(arrays, self.encoding, self.shard_format)
        self.entries.append(publish_shard(self.root, payload, arrays, self.shard_format))
        for gathered in (self._tokens, self._masks, self._ids, self._logprobs):
            gathered.clear()
