"""Batches have the narrowest dtypes that hold their values exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cache_builder import make_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cache import MemoryCache

from logitcache.format.arrays import ShardArrays
from logitcache.format.encoding import Encoding
from logitcache.format.formats import decode_shard, encode_shard
from logitcache.stream import Batch, stream
from logitcache.stream.prepared import narrow_ids, narrow_logprobs, prepared
from logitcache.targets.topk import TopK


def kept(holder: Batch | TopK) -> dict[str, torch.Tensor]:
    """The tensors by name, in the dtypes in which they are kept."""
    return {name: value for name, value in vars(holder).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(
    ("preset", "max_error", "dtype"),
    [
        ("compact", None, torch.float16),
        ("tiny", None, torch.float16),
        ("half", None, torch.float16),
        ("compact", 2**-10, torch.float32),
        ("exact", None, torch.float32),
    ],
)
def test_batches_are_compact_and_no_value_changes(preset: str, max_error: float | None, dtype: torch.dtype) -> None:
    payload = encode_shard(make_arrays(3, [9] * 40, k=8), Encoding(preset=preset, max_error=max_error), "zarr")
    shard = decode_shard(payload, "zarr")
    (batch,) = stream(MemoryCache([shard], "sha256:one"), batch_size=40, shuffle=False)
    assert kept(batch.targets)["ids"].dtype == torch.uint16
    assert kept(batch.targets)["logprobs"].dtype == dtype
    for found in (batch, batch.to("cpu")):
        assert found.targets.ids.dtype == torch.int64
        assert np.array_equal(found.targets.ids.numpy(), shard.topk_ids_NK)
        assert np.array_equal(found.targets.logprobs.numpy(), shard.topk_logprobs_NK)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(max_value=0, width=32), min_size=1, max_size=20), st.integers(1, 3))
def test_narrowing_never_changes_a_log_prob(values: list[float], columns: int) -> None:
    wide = np.array(values, np.float32).repeat(columns).reshape(-1, columns)
    narrow = narrow_logprobs(wide)
    assert np.array_equal(narrow.astype(np.float32), wide)
    with np.errstate(over="ignore"):
        assert (narrow.dtype == np.float16) == np.array_equal(wide.astype(np.float16).astype(np.float32), wide)


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(65_536, np.uint16), (65_537, np.int32), (2**31, np.int32), (2**32, np.int64)]
)
def test_ids_have_the_narrowest_dtype_for_the_vocabulary(vocab: int, dtype: type[np.generic]) -> None:
    narrow = narrow_ids(np.array([[0, vocab - 1]], np.uint32), vocab)
    assert narrow.dtype == dtype
    assert narrow.tolist() == [[0, vocab - 1]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches_reach_the_device_unchanged() -> None:
    cache = MemoryCache.random(shards=3, largest=5, longest=8, seed=4)
    for batch, pinned in zip(stream(cache), stream(cache, pin_memory=True), strict=True):
        assert all(tensor.is_pinned() for tensor in [*kept(pinned).values(), *kept(pinned.targets).values()])
        there = pinned.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        assert torch.equal(there.targets.ids.cpu(), batch.targets.ids)
        assert torch.equal(there.targets.logprobs.cpu(), batch.targets.logprobs)


def test_a_wide_vocabulary_keeps_its_ids() -> None:
    shard = MemoryCache.random(shards=1, largest=2, longest=5, seed=0)._shards[0]
    wide = ShardArrays(
        **{
            **{name: getattr(shard, name) for name in shard.__dataclass_fields__},
            "vocab_size": 2**32,
            "topk_ids_NK": np.full_like(shard.topk_ids_NK, 2**32 - 1),
        }
    )
    assert prepared(wide).topk_ids_NK.max() == 2**32 - 1
