"""A cache as an Arrow table or a Hugging Face ``datasets`` data set, for analysis: one row per sequence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError, MissingDependencyError
from logitcache.format.arrays import DIGEST_BYTES, ShardArrays
from logitcache.format.table import ShardTable


class Shards(Protocol):
    """What an export reads from a cache; ``logitcache.Cache`` is one."""

    @property
    def root(self) -> Path: ...
    @property
    def shards(self) -> ShardTable: ...
    @property
    def top_k(self) -> int: ...
    def read_shard(self, index: int) -> ShardArrays: ...


def to_arrow(cache: Shards) -> pa.RecordBatchReader:
    """Stream a cache as record batches: one per shard, with one row per sequence.

    Columns: ``sequence`` (index in the cache), ``digest``, ``token_ids`` and ``positions`` (those that have targets).
    Then, with one item for each of those positions: ``topk_ids``, ``topk_logprobs`` (K each, in nats) and
    ``residual_logprob``, and ``log_partition`` and ``logit_std`` if the cache stores them.

    Raises:
        CorruptCacheError, StorageError: as when reading a shard.
    """
    first = cache.read_shard(0) if len(cache.shards) else None
    schema = _schema(cache.top_k, statistics=[] if first is None else _statistics(first))
    return pa.RecordBatchReader.from_batches(schema, _batches(cache, schema))


def to_datasets(cache: Shards, *, streaming: bool = False) -> Any:
    """A ``datasets.Dataset`` in memory with the columns of :func:`to_arrow`.

    Args:
        cache: what to read.
        streaming: return a ``datasets.IterableDataset`` that reads shard by shard, for caches larger than memory.

    Raises:
        MissingDependencyError: ``datasets`` isn't installed.
        CorruptCacheError, StorageError: as when reading a shard.
    """
    try:
        import datasets
    except ImportError as error:
        message = "to_datasets needs the package `datasets`: pip install 'logitcache[datasets]'"
        raise MissingDependencyError(message) from error
    if not streaming:
        return datasets.Dataset(to_arrow(cache).read_all())
    features = datasets.Features.from_arrow_schema(to_arrow(cache).schema)
    shards = list(range(len(cache.shards)))
    return datasets.IterableDataset.from_generator(
        _rows, features=features, gen_kwargs={"cache": cache, "shards": shards}
    )


def _rows(cache: Shards, shards: list[int]) -> Iterator[dict[str, Any]]:
    # datasets gives each of its workers a part of this list.
    schema = to_arrow(cache).schema
    for shard in shards:
        yield from _batch(cache, shard, schema).to_pylist()


def _batches(cache: Shards, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for shard in range(len(cache.shards)):
        yield _batch(cache, shard, schema)


def _statistics(arrays: ShardArrays) -> list[str]:
    return [name for name in ("log_partition", "logit_std") if getattr(arrays, f"{name}_N") is not None]


def _schema(k: int, statistics: list[str]) -> pa.Schema:
    columns: dict[str, pa.DataType] = {
        "sequence": pa.int64(),
        "digest": pa.binary(DIGEST_BYTES),
        "token_ids": pa.list_(pa.uint32()),
        "positions": pa.list_(pa.int32()),
        "topk_ids": pa.list_(pa.list_(pa.uint32(), k)),
        "topk_logprobs": pa.list_(pa.list_(pa.float32(), k)),
        "residual_logprob": pa.list_(pa.float32()),
        **{name: pa.list_(pa.float32()) for name in statistics},
    }
    return pa.schema(list(columns.items()))


def _batch(cache: Shards, shard: int, schema: pa.Schema) -> pa.RecordBatch:
    arrays = cache.read_shard(shard)
    first = int(cache.shards.first_sequence_R1[shard])
    target_offsets_S1 = arrays.target_offsets_S1
    starts_L = np.repeat(arrays.offsets_S1[:-1], np.diff(arrays.offsets_S1))
    positions_N = (np.arange(arrays.tokens) - starts_L)[arrays.target_mask_L]
    columns = {
        "sequence": pa.array(np.arange(first, first + arrays.sequences)),
        "digest": pa.array([row.tobytes() for row in arrays.sequence_digests_S16], pa.binary(DIGEST_BYTES)),
        "token_ids": _lists(arrays.offsets_S1, arrays.token_ids_L),
        "positions": _lists(target_offsets_S1, positions_N.astype(np.int32)),
        "topk_ids": _lists(target_offsets_S1, arrays.topk_ids_NK),
        "topk_logprobs": _lists(target_offsets_S1, arrays.topk_logprobs_NK),
        "residual_logprob": _lists(target_offsets_S1, arrays.residual_logprob_N),
    }
    missing = set(schema.names) - set(columns) - set(_statistics(arrays))
    if missing:
        raise CorruptCacheError(f"{cache.root / cache.shards[shard].path} lacks {missing.pop()}, which the first has")
    for name in set(schema.names) - set(columns):
        columns[name] = _lists(target_offsets_S1, getattr(arrays, f"{name}_N"))
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _lists(offsets_S1: NDArray[np.int64], values: NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 2:
        flat = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets_S1.astype(np.int32)), flat)
