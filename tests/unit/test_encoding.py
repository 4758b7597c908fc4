"""Encoding: its settings, its error bound on any numbers, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import ValidationError
from shard_strategies import random_shard
from test_shards import assert_within

from logitcache.errors import TargetsError
from logitcache.format.classes import cluster_rows
from logitcache.format.encoding import Encoding, encode_arrays
from logitcache.format.encoding_symbols import SymbolReader, to_symbols
from logitcache.format.encoding_values import decode_logprobs, decode_residual, encode_logprobs, encode_residual
from logitcache.format.stored import ArrayReader

any_float = st.floats(width=32, allow_nan=False).filter(lambda value: value < np.inf)
any_rows = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=any_float)
any_encoding = st.one_of(
    st.builds(Encoding, preset=st.sampled_from(["exact", "half", "compact", "tiny"])),
    st.builds(Encoding, preset=st.sampled_from(["compact", "tiny"]), max_error=st.floats(2**-12, 1)),
)


@pytest.mark.parametrize(
    ("preset", "max_error", "bound"),
    [
        ("exact", None, 0),
        ("half", None, 1 / 64),
        ("compact", None, 1 / 64),
        ("tiny", None, 1 / 16),
        ("compact", 0.01, 1 / 128),
        ("tiny", 1.0, 1.0),
        ("compact", 2**-12, 2**-12),
    ],
)
def test_bounds(preset: Any, max_error: float | None, bound: float) -> None:
    assert Encoding(preset=preset, max_error=max_error).bound == bound


@pytest.mark.parametrize("max_error", [0, -1, 1e-9, 1.5, float("nan"), float("inf")])
def test_refuses_bounds_that_cannot_be_kept(max_error: float) -> None:
    with pytest.raises(ValidationError, match="max_error"):
        Encoding(max_error=max_error)


def test_refuses_a_bound_that_would_be_ignored() -> None:
    with pytest.raises(ValidationError, match="goes with compact or tiny; exact has a bound of its own"):
        Encoding(preset="exact", max_error=0.01)


@given(any_rows, any_encoding)
@settings(deadline=None, max_examples=300)
@example(np.array([[0.0, -1e30], [-np.inf, -np.inf], [3e38, -3e38]], np.float32), Encoding())
@example(np.array([[-2047.99, -2048.0], [-65535.0, -65536.0]], np.float32), Encoding(max_error=1 / 64))
@example(np.array([[64.1, -63.99], [-64.0, -64.01], [1e-8, -65520.0]], np.float32), Encoding(preset="half"))
def test_error_is_within_the_bound_for_any_number(rows: np.ndarray, encoding: Encoding) -> None:
    logprobs_NK = np.ascontiguousarray(-np.sort(-rows, axis=1))
    stored = ArrayReader(encode_logprobs(logprobs_NK, encoding.kind, encoding.step))
    decoded_NK = decode_logprobs(stored, logprobs_NK.shape[::-1], encoding.kind, encoding.step)
    stored.finish()
    assert_within(logprobs_NK, decoded_NK, encoding.bound)
    assert (decoded_NK[:, 1:] <= decoded_NK[:, :-1]).all()
    stored = ArrayReader(encode_residual(logprobs_NK[:, 0], encoding.kind, encoding.step))
    assert_within(logprobs_NK[:, 0], decode_residual(stored, len(rows), encoding.kind, encoding.step), encoding.bound)


@given(
    arrays(
        np.uint32,
        array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.one_of(
            st.integers(0, 200),
            st.integers(0, 2**32 - 1),
            st.sampled_from([95, 96, 1119, 1120, 22_623, 22_624, 743_519, 743_520, 2**32 - 1]),
        ),
    )
)
@settings(deadline=None)
def test_symbols_hold_any_numbers(numbers: np.ndarray) -> None:
    stored = ArrayReader(to_symbols("it", numbers))
    reader = SymbolReader(stored, "it", numbers.shape)
    rows = [reader.rows(row, row + 1) for row in range(len(numbers))]
    reader.finish()
    stored.finish()
    np.testing.assert_array_equal(np.concatenate(rows), numbers)


def test_classes_depend_on_nothing_but_the_ids() -> None:
    ranks_NK = np.random.default_rng(0).zipf(1.3, (3000, 20)).clip(max=5000) - 1
    first, second = cluster_rows(ranks_NK.astype(np.uint16)), cluster_rows(ranks_NK.astype(np.uint32))
    assert first is not None
    np.testing.assert_array_equal(first, second)
    assert cluster_rows(ranks_NK[:100]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk_logprobs_NK": np.array([[-1, -0.5]] * 4, np.float32)}, "must not rise along K"),
        ({"topk_logprobs_NK": np.array([[np.nan, -1]] * 4, np.float32)}, "neither NaN nor"),
        ({"topk_logprobs_NK": np.array([[-1, np.nan]] * 4, np.float32)}, "neither NaN nor"),
        ({"topk_logprobs_NK": np.array([[np.inf, -1]] * 4, np.float32)}, "neither NaN nor"),
        ({"residual_logprob_N": np.array([np.nan] * 4, np.float32)}, "residual_logprob_N"),
        ({"topk_ids_NK": np.array([[1, 300]] * 4, np.uint32)}, "id 300 is outside the vocabulary of 300"),
        ({"topk_ids_NK": np.zeros((3, 2), np.uint32)}, r"topk_ids_NK is \(3, 2\)"),
        ({"offsets_S1": np.array([0, 4])}, "offsets_S1 must rise from 0 to the number of tokens, 5"),
        ({"offsets_S1": np.array([0, 7, 5]), "sequence_digests_S16": np.zeros((2, 16), np.uint8)}, "offsets_S1"),
        ({"target_mask_L": np.array([True] * 3 + [False] * 2)}, "marks 3 positions; targets are 4"),
        ({"target_mask_L": np.array([False] + [True] * 4)}, "last token"),
        ({"vocab_size": 1}, "K = 2 of a vocabulary of 1"),
    ],
)
def test_refuses_arrays_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    arrays_ = random_shard(0, [5], 300, 2)
    with pytest.raises(TargetsError, match=message):
        encode_arrays(dataclasses.replace(arrays_, **change), Encoding())
