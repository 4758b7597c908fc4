"""The reader printed in docs/reference/shards.md, which imports nothing of logitcache, reads what logitcache writes.

It reads two presets; the one in tests/plain_reader.py, from the same page and a little longer, reads all four.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import plain_reader
import pytest
from shard_strategies import VALUES, random_shard

from logitcache.format.encoding import Encoding, Preset
from logitcache.format.formats import decode_shard, encode_shard

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "shards.md"
FIELDS = {
    "tokens": "token_ids_L",
    "mask": "target_mask_L",
    "ids": "topk_ids_NK",
    "logprob": "topk_logprobs_NK",
    "residual": "residual_logprob_N",
}


def printed_reader() -> str:
    found = re.search(r'```python title="read_shard.py"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_reader_is_short_and_on_its_own() -> None:
    lines = [line for line in printed_reader().splitlines() if line.strip()]
    assert len(lines) <= 30
    assert not any("logitcache" in line for line in lines)


@pytest.mark.parametrize("preset", ["exact", "half", "compact", "tiny"])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    ("lengths", "vocab", "k"),
    [([1300, 7, 0], 3000, 15), ([5], 2**32, 3), ([900], 2**32, 8), ([3, 2], 9, 9), ([40], 5000, 4096)],
)
def test_printed_reader_reads(
    preset: Preset, values: str, lengths: list[int], vocab: int, k: int, tmp_path: Path
) -> None:
    payload = encode_shard(random_shard(2, lengths, vocab, k, values), Encoding(preset=preset), "zarr")
    path = tmp_path / "shard.zarr.zip"
    path.write_bytes(payload)
    namespace: dict[str, Any] = {}
    exec(compile(printed_reader(), str(PAGE), "exec"), namespace)
    decoded = decode_shard(payload, "zarr")
    readers = [plain_reader.read_shard] + ([namespace["read_shard"]] if preset in ("compact", "tiny") else [])
    for reader in readers:
        read = reader(path)
        for name, field in FIELDS.items():
            np.testing.assert_array_equal(read[name], getattr(decoded, field), name)
        np.testing.assert_array_equal(read["lengths"], np.diff(decoded.offsets_S1))
