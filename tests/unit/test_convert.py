"""Converting a cache: what stays exact, what the new manifest says, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_builder import build_cache, make_arrays, make_provenance
from test_shards import FORMATS
from typer.testing import CliRunner

import logitcache as lc
from logitcache.cache.convert import convert_cache
from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.cache.reader import Cache
from logitcache.cache.verify import verify_cache
from logitcache.cli.main import app
from logitcache.errors import ConfigError, OutputExistsError
from logitcache.format.calibrate import calibrate
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName, encode_shard


def build(root: Path, encoding: Encoding, shard_format: ShardFormatName = "zarr") -> Cache:
    """A cache of three shards with a calibration, as a dump makes it."""
    shards = [make_arrays(seed) for seed in range(3)]
    payloads = [encode_shard(shard, encoding, shard_format) for shard in shards]
    entries = [publish_shard(root, *pair, shard_format) for pair in zip(payloads, shards, strict=True)]
    calibration = calibrate(shards[0], encoding, payloads[0])
    finalize_cache(root, entries, make_provenance(), encoding, shard_format, {}, calibration)
    return lc.open(root)


def assert_same_values(first: Cache, second: Cache) -> None:
    for index in range(len(first.shards)):
        ours, theirs = first.read_shard(index).columns(), second.read_shard(index).columns()
        assert ours.keys() == theirs.keys()
        for name, column in ours.items():
            np.testing.assert_array_equal(column, theirs[name], name)


@pytest.mark.parametrize("preset", ["exact", "half", "compact", "tiny"])
def test_formats_convert_into_each_other_without_loss(preset: str, tmp_path: Path) -> None:
    encoding = Encoding.checked(preset, None)
    zarr, arrow = build(tmp_path / "zarr", encoding), build(tmp_path / "arrow", encoding, "arrow")
    made = convert_cache(zarr, tmp_path / "made", shard_format="arrow", workers=2)
    converted = lc.open(tmp_path / "made")
    assert [entry.sha256 for entry in converted.shards] == [entry.sha256 for entry in arrow.shards]
    assert converted.manifest.shard_format == "arrow"
    assert converted.manifest.provenance.parents == (zarr.digest,) == (made.parent,)
    assert converted.digest == made.digest
    assert made.max_error == encoding.bound
    back = convert_cache(tmp_path / "made", tmp_path / "back", shard_format="zarr")
    assert [entry.sha256 for entry in lc.open(tmp_path / "back").shards] == [entry.sha256 for entry in zarr.shards]
    assert back.max_error == encoding.bound
    assert verify_cache(tmp_path / "back", deep=True).ok


@pytest.mark.parametrize("preset", ["exact", "half", "compact"])
def test_a_finer_encoding_keeps_the_values(preset: str, tmp_path: Path) -> None:
    source = build(tmp_path / "source", Encoding(preset="tiny"))
    made = convert_cache(source, tmp_path / "made", encoding=Encoding.checked(preset, None))
    assert_same_values(source, lc.open(tmp_path / "made"))
    assert made.max_error == made.residual_max_error == 1 / 16


def test_errors_of_a_coarser_encoding_add_up(tmp_path: Path) -> None:
    source = build(tmp_path / "source", Encoding())
    made = convert_cache(source, tmp_path / "made", encoding=Encoding(preset="tiny"))
    assert made.max_error == 1 / 64 + 1 / 16
    converted = lc.open(tmp_path / "made")
    assert converted.manifest.provenance.settings["convert"]["max_error"] == made.max_error
    truth = make_arrays(1).topk_logprobs_NK
    error = np.abs(converted.read_shard(1).topk_logprobs_NK - truth).max()
    assert 1 / 64 < error <= made.max_error
    calibration, before = converted.manifest.calibration, source.manifest.calibration
    assert calibration is not None
    assert before is not None
    assert before.max_error < calibration.max_error <= calibration.bound == made.max_error


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_smaller_k_moves_mass_to_the_residual(shard_format: ShardFormatName, tmp_path: Path) -> None:
    source = build(tmp_path / "source", Encoding(preset="exact"), shard_format)
    convert_cache(source, tmp_path / "made", top_k=2)
    converted = lc.open(tmp_path / "made")
    assert converted.top_k == 2
    for index in range(len(source)):
        want, got = source[index].targets.top(2), converted[index].targets
        assert torch.equal(want.ids, got.ids)
        assert torch.equal(want.logprobs, got.logprobs)
        torch.testing.assert_close(want.residual_logprob, got.residual_logprob)
    calibration = converted.manifest.calibration
    assert calibration is not None
    assert calibration.by_rank[-1].last == 2


def test_running_again_finishes_the_same_cache(tmp_path: Path) -> None:
    source = build(tmp_path / "source", Encoding())
    first = convert_cache(source, tmp_path / "made", shard_format="arrow")
    with pytest.raises(OutputExistsError):
        convert_cache(source, tmp_path / "made", shard_format="arrow")
    for path in (tmp_path / "made").iterdir():  # as after a crash before the last shard
        if path.is_file():
            path.unlink()
    next(iter((tmp_path / "made" / "shards").iterdir())).unlink()
    assert convert_cache(source, tmp_path / "made", shard_format="arrow") == first


def test_refusals(tmp_path: Path) -> None:
    build_cache(tmp_path / "source")
    with pytest.raises(ConfigError, match="nothing would change"):
        convert_cache(tmp_path / "source", tmp_path / "made", shard_format="zarr", encoding=Encoding(max_error=1 / 50))
    with pytest.raises(ConfigError, match="top-k 6: the cache has 5"):
        convert_cache(tmp_path / "source", tmp_path / "made", top_k=6)
    with pytest.raises(ConfigError, match="not known"):
        convert_cache(tmp_path / "source", tmp_path / "made", shard_format="hdf5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="convert into a directory"):
        convert_cache(tmp_path / "source", "s3://bucket/made", shard_format="arrow")
    with pytest.raises(ConfigError, match=r"max_error: .* from 2\^-12 to 1"):
        Encoding.checked("tiny", 3.0)
    assert not (tmp_path / "made").exists()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError):
        convert_cache(tmp_path / "source", tmp_path / "made", shard_format="arrow")


def test_command(tmp_path: Path) -> None:
    build_cache(tmp_path / "source")
    arguments = ["convert", str(tmp_path / "source"), "--preset", "tiny", "--top-k", "3", "--format", "arrow"]
    said = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "made"), "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["digest"] == lc.open(tmp_path / "made").digest
    said = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "again")])
    assert "log-probs within 0.078125 nats of the teacher's" in said.stdout
