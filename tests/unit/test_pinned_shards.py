"""Format 1 doesn't change: pinned shards decode to the same arrays, and are written as the same bytes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_shards import assert_decodes

from logitcache.format.arrays import ShardArrays
from logitcache.format.encoding import Encoding
from logitcache.format.formats import decode_shard, encode_shard

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FOLDER = FIXTURES / "shards1"
INDEX = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))

sys.path.insert(0, str(FIXTURES))
from make_shards1 import arrays_digest  # noqa: E402

each_shard = pytest.mark.parametrize("name", INDEX["shards"])


def read_input(name: str) -> ShardArrays:
    with np.load(FOLDER / INDEX["shards"][name]["input"]) as stored:
        fields: dict[str, Any] = {**stored, "vocab_size": int(stored["vocab_size"])}
    return ShardArrays(**fields)


@each_shard
def test_pinned_shard_decodes_to_the_same_arrays(name: str) -> None:
    pinned = INDEX["shards"][name]
    payload = (FOLDER / name).read_bytes()
    assert hashlib.sha256(payload).hexdigest() == pinned["sha256"]
    decoded = decode_shard(payload, name.rsplit(".")[-1])  # type: ignore[arg-type]
    assert arrays_digest(decoded) == pinned["decoded"]
    assert_decodes(read_input(name), decoded, Encoding.checked(pinned["preset"], None))


@each_shard
def test_encoder_still_yields_the_pinned_bytes(name: str) -> None:
    other = {
        library: found
        for library, version in INDEX["made with"].items()
        if library != "torch" and (found := importlib.metadata.version(library)) != version
    }
    if other:
        pytest.skip(f"bytes may differ where zstd or Arrow do: {other}")
    encoding = Encoding.checked(INDEX["shards"][name]["preset"], None)
    payload = encode_shard(read_input(name), encoding, name.rsplit(".")[-1])  # type: ignore[arg-type]
    assert payload == (FOLDER / name).read_bytes()


def test_every_pinned_file_is_listed() -> None:
    inputs = {shard["input"] for shard in INDEX["shards"].values()}
    assert {path.name for path in FOLDER.iterdir()} == {"index.json", *inputs, *INDEX["shards"]}
