"""Two whole caches of format 1, as they were when the format was fixed. Every later version must read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import logitcache as lc
from logitcache.cache.publish import finalize_cache
from logitcache.cache.tokenizer import tokenizer_digest
from logitcache.cache.verify import verify_cache
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName, encode_shard
from logitcache.format.table import write_table

FORMAT1 = Path(__file__).resolve().parents[1] / "fixtures" / "format1"
DIGESTS: dict[ShardFormatName, str] = {
    "zarr": "sha256:bfe563877940b1d24ac5f08d1c4621f8ae6736e2e30735a5a2168c9d05c9c5bf",
    "arrow": "sha256:6fd7c521c26afcb12a7063deb5a7606dd15b76ca36e65cb7a5878a7b4f5190d5",
}
ENCODINGS = {"zarr": Encoding(), "arrow": Encoding(preset="exact")}


@pytest.fixture(params=["zarr", "arrow"])
def shard_format(request: pytest.FixtureRequest) -> ShardFormatName:
    found: ShardFormatName = request.param
    return found


def expected(shard_format: str, shard: int) -> dict[str, np.ndarray]:
    """The arrays that went into a shard."""
    with np.load(FORMAT1 / f"expected-{shard_format}.npz", allow_pickle=False) as arrays:
        return {name.partition("_")[2]: arrays[name] for name in arrays if name.startswith(f"{shard}_")}


def test_it_opens_under_its_name_and_is_sound(shard_format: ShardFormatName) -> None:
    root = FORMAT1 / f"cache-{shard_format}"
    assert lc.open(root).digest == DIGESTS[shard_format]
    assert verify_cache(root, deep=True).faults == []


def test_it_holds_what_went_in(shard_format: ShardFormatName) -> None:
    cache = lc.open(FORMAT1 / f"cache-{shard_format}")
    assert [(entry.sequences, entry.tokens) for entry in cache.shards] == [(4, 1524), (0, 0), (1, 64)]
    bound = {"zarr": 1 / 64, "arrow": 0.0}[shard_format]
    for shard in range(len(cache.shards)):
        read, wrote = cache.read_shard(shard).columns(), expected(shard_format, shard)
        assert read.keys() == wrote.keys()
        assert ("log_partition_N" in read) == (shard_format == "arrow")
        for name, values in wrote.items():
            assert read[name].dtype == values.dtype
            if name in ("topk_logprobs_NK", "residual_logprob_N"):
                assert np.abs(read[name] - values).max(initial=0) <= bound, name
            else:
                np.testing.assert_array_equal(read[name], values, name)


def test_its_provenance_and_card_read_back(shard_format: ShardFormatName) -> None:
    manifest = lc.open(FORMAT1 / f"cache-{shard_format}").manifest
    assert manifest.encoding == ENCODINGS[shard_format]
    assert manifest.provenance.teacher.name == "org/teacher"
    assert manifest.provenance.settings == {"overlap": 0, "long_rows": "split"}
    assert manifest.card.notes == "é – 猫"
    assert manifest.calibration is not None
    assert manifest.to_bytes() == (FORMAT1 / f"cache-{shard_format}" / "manifest.json").read_bytes()


def test_its_tokenizer_works(shard_format: ShardFormatName) -> None:
    cache = lc.open(FORMAT1 / f"cache-{shard_format}")
    tokenizer = cache.load_tokenizer()
    assert tokenizer_digest(tokenizer) == cache.manifest.provenance.tokenizer_digest
    assert tokenizer.decode(tokenizer("the rat sat")["input_ids"]).strip() == "the rat sat"


def test_writing_it_today_gives_the_same_bytes(shard_format: ShardFormatName, tmp_path: Path) -> None:
    """Shards, table and manifest. A change here gives all new caches new names: make it on purpose or not at all."""
    root = FORMAT1 / f"cache-{shard_format}"
    cache = lc.open(root)
    for shard, entry in enumerate(cache.shards):
        payload = (root / entry.path).read_bytes()
        assert encode_shard(cache.read_shard(shard), ENCODINGS[shard_format], shard_format) == payload
    assert write_table(list(cache.shards)) == (root / "shards.arrow").read_bytes()
    shutil.copytree(root / "shards", tmp_path / "shards")
    manifest = cache.manifest
    files = {name: (root / "tokenizer" / name).read_bytes() for name in manifest.tokenizer}
    rest = (manifest.encoding, shard_format, files, manifest.calibration, manifest.card)
    assert finalize_cache(tmp_path, list(cache.shards), manifest.provenance, *rest) == DIGESTS[shard_format]
