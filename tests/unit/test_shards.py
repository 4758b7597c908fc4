"""The same tests for every shard format."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr
from cache_builder import make_arrays
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_strategies import random_shard, shards

from logitcache.errors import ConfigError, CorruptCacheError, TargetsError
from logitcache.format.arrays import ShardArrays
from logitcache.format.calibrate import calibrate
from logitcache.format.encoding import Encoding, encode_arrays
from logitcache.format.formats import ShardFormatName, decode_shard, encode_shard, get_format

FORMATS: list[ShardFormatName] = ["zarr", "arrow"]
ENCODINGS = [
    Encoding(preset="exact"),
    Encoding(preset="half"),
    Encoding(preset="compact"),
    Encoding(preset="tiny"),
    Encoding(preset="compact", max_error=1 / 1000),
]
any_format = pytest.mark.parametrize("shard_format", FORMATS)
any_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: f"{encoding.preset}")
many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def assert_within(before: np.ndarray, after: np.ndarray, bound: float) -> None:
    """Equal where infinite, and within the bound elsewhere, reckoned in float64."""
    assert after.dtype == np.float32
    infinite = np.isinf(before)
    assert (np.isinf(after) == infinite).all()
    difference = np.abs(before[~infinite].astype(np.float64) - after[~infinite].astype(np.float64))
    assert (difference <= bound).all()


def assert_decodes(arrays: ShardArrays, decoded: ShardArrays, encoding: Encoding) -> None:
    """Everything exact, but for log-probs and residual, which are within the bound and never rise."""
    logprobs = ("topk_logprobs_NK", "residual_logprob_N")
    assert decoded.columns().keys() == arrays.columns().keys()
    for name, column in arrays.columns().items():
        if name not in logprobs:
            assert decoded.columns()[name].dtype == column.dtype, name
            np.testing.assert_array_equal(decoded.columns()[name], column, name)
    for name in logprobs:
        assert_within(getattr(arrays, name), getattr(decoded, name), encoding.bound)
    assert (np.diff(np.nan_to_num(decoded.topk_logprobs_NK.astype(np.float64)), axis=1) <= 0).all()
    assert decoded.vocab_size == arrays.vocab_size


@any_format
@any_encoding
@many
@given(arrays=shards())
def test_any_shard_is_read_as_written(shard_format: ShardFormatName, encoding: Encoding, arrays: ShardArrays) -> None:
    payload = encode_shard(arrays, encoding, shard_format)
    decoded = decode_shard(payload, shard_format)
    assert_decodes(arrays, decoded, encoding)
    # Encoding what was decoded changes nothing more: values don't drift, however often a cache is converted.
    assert encode_shard(decoded, encoding, shard_format) == payload


@any_format
@pytest.mark.parametrize(
    ("lengths", "vocab", "k"),
    [
        ([1500, 900, 0, 1], 3000, 32),  # enough rows for classes
        ([900], 2**32, 8),  # ids too large to count one by one
        ([3, 2], 5000, 4096),
        ([40], 4096, 4096),
        ([300], 262_144, 64),
    ],
)
def test_larger_shards_are_read_as_written(
    shard_format: ShardFormatName, lengths: list[int], vocab: int, k: int
) -> None:
    arrays = random_shard(1, lengths, vocab, k)
    assert_decodes(arrays, decode_shard(encode_shard(arrays, Encoding(), shard_format), shard_format), Encoding())


@any_format
def test_classes_of_rows_make_it_smaller(shard_format: ShardFormatName) -> None:
    # Two kinds of rows, each with words of its own: the classes find them.
    kind = np.random.default_rng(0).integers(0, 2, 1999).astype(np.uint32)
    arrays = random_shard(0, [2000], 4000, 32)
    apart = dataclasses.replace(arrays, topk_ids_NK=arrays.topk_ids_NK // 2 + 2000 * kind[:, None])
    assert "id_classes" in encode_arrays(apart, Encoding()).arrays
    decoded = decode_shard(encode_shard(apart, Encoding(), shard_format), shard_format)
    np.testing.assert_array_equal(decoded.topk_ids_NK, apart.topk_ids_NK)


@any_format
def test_equal_input_gives_equal_bytes(shard_format: ShardFormatName) -> None:
    first, second = (encode_shard(random_shard(5, [1200, 3], 2000, 16), Encoding(), shard_format) for _ in range(2))
    assert first == second


@any_format
def test_layout_of_the_input_does_not_matter(shard_format: ShardFormatName) -> None:
    arrays = random_shard(3, [50], 300, 5)
    other = dataclasses.replace(
        arrays,
        topk_ids_NK=np.asfortranarray(arrays.topk_ids_NK),
        topk_logprobs_NK=np.asfortranarray(arrays.topk_logprobs_NK),
    )
    assert encode_shard(arrays, Encoding(), shard_format) == encode_shard(other, Encoding(), shard_format)


@any_format
@many
@given(arrays=shards(), chosen=st.sampled_from(ENCODINGS))
def test_calibration_reports_true_errors(shard_format: ShardFormatName, arrays: ShardArrays, chosen: Encoding) -> None:
    payload = encode_shard(arrays, chosen, shard_format)
    calibration = calibrate(arrays, chosen, payload)
    assert calibration.max_error <= calibration.bound == chosen.bound
    assert calibration.residual_max_error <= chosen.bound
    assert sum(calibration.parts.values()) == pytest.approx(calibration.bytes_per_token, rel=1e-3)
    assert [rank.last + 1 for rank in calibration.by_rank[:-1]] == [rank.first for rank in calibration.by_rank[1:]]
    assert calibration.by_rank[-1].last == arrays.k


def test_zarr_itself_reads_the_same_arrays(tmp_path: Path) -> None:
    arrays = random_shard(2, [1300, 7], 3000, 16, values="absurd", statistics=True)
    stored = encode_arrays(arrays, Encoding())
    path = tmp_path / "shard.zarr.zip"
    path.write_bytes(encode_shard(arrays, Encoding(), "zarr"))
    with zarr.storage.ZipStore(path, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        assert dict(group.attrs) == stored.attributes
        assert set(group.array_keys()) == set(stored.arrays)
        for name, array in stored.arrays.items():
            np.testing.assert_array_equal(group[name][...], array, name)


def test_pyarrow_reads_the_same_arrays() -> None:
    arrays = random_shard(2, [1300, 7], 3000, 16, values="absurd", statistics=True)
    stored = encode_arrays(arrays, Encoding())
    table = pa.ipc.open_file(encode_shard(arrays, Encoding(), "arrow")).read_all()
    assert table.num_rows == 1
    assert set(table.column_names) == set(stored.arrays)
    for name, array in stored.arrays.items():
        np.testing.assert_array_equal(np.array(table[name][0].as_py(), array.dtype).reshape(array.shape), array, name)


def test_both_formats_hold_the_same() -> None:
    arrays = make_arrays(7, statistics=True)
    decoded = [decode_shard(encode_shard(arrays, Encoding(), name), name).columns() for name in FORMATS]
    for name, column in decoded[0].items():
        np.testing.assert_array_equal(column, decoded[1][name], name)


def test_zip_has_no_time_of_day() -> None:
    payload = encode_shard(make_arrays(0), Encoding(), "zarr")
    entries = zipfile.ZipFile(io.BytesIO(payload)).infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}


def test_unknown_format() -> None:
    with pytest.raises(ConfigError, match="'parquet' is not known: choose one of zarr, arrow"):
        encode_shard(make_arrays(0), Encoding(), "parquet")  # type: ignore[arg-type]


@any_format
def test_a_shard_that_readers_would_refuse_as_too_large_is_not_written(
    shard_format: ShardFormatName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitcache.format.formats.size_limit", lambda payload_bytes: 64 * payload_bytes)
    arrays = random_shard(0, [2000], 1000, 200)
    alike = dataclasses.replace(
        arrays,
        topk_ids_NK=np.broadcast_to(np.arange(200, dtype=np.uint32), arrays.topk_ids_NK.shape),
        topk_logprobs_NK=np.full_like(arrays.topk_logprobs_NK, -6),
    )
    assert encode_shard(arrays, Encoding(), shard_format)
    with pytest.raises(TargetsError, match="make shards smaller"):
        encode_shard(alike, Encoding(), shard_format)


@any_format
@many
@given(arrays=shards())
def test_one_array_can_be_read_by_itself(shard_format: ShardFormatName, arrays: ShardArrays) -> None:
    payload = encode_shard(arrays, Encoding(), shard_format)
    with tempfile.TemporaryFile() as file:
        file.write(payload)
        file.flush()
        lengths = get_format(shard_format).read_one(file, "sequence_lengths")
        assert lengths.dtype == np.uint32
        assert lengths.tolist() == np.diff(arrays.offsets_S1).tolist()
        with pytest.raises(CorruptCacheError):
            get_format(shard_format).read_one(file, "sequence_widths")


def test_little_more_than_the_array_is_read_from_a_zip_file() -> None:
    class Counted(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            Counted.total += len(content)
            return content

    payload = encode_shard(random_shard(0, [200] * 40, 49_152, 64), Encoding(), "zarr")
    lengths = get_format("zarr").read_one(Counted(payload), "sequence_lengths")
    assert lengths.tolist() == [200] * 40
    assert Counted.total < 8_000 < len(payload) / 50
