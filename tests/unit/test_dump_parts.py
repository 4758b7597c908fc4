"""Parts of a dump: the order of batches, claims, ranks of workers, settings."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitcache.cli.dump import _worker_of_environment
from logitcache.cli.options import gather
from logitcache.data import TokenSequence
from logitcache.dump import DumpConfig, make_config
from logitcache.dump.assemble import Computed, assemble
from logitcache.dump.claims import try_claim
from logitcache.dump.descriptors import Descriptor, descriptor_name, read_descriptor, write_descriptor
from logitcache.dump.settings import Stamps
from logitcache.errors import ConfigError, NonFiniteLogitsError
from logitcache.targets.topk import TopK

V, K = 11, 3


def computed(lengths: list[int], batches: list[list[int]], poison: tuple[int, int] | None = None) -> Computed:
    """Targets whose top id is made from their sequence and position; the position ``poison`` gets NaN."""
    sequences = [
        TokenSequence(np.arange(length, dtype=np.uint32), np.arange(length) < length - 1) for length in lengths
    ]
    results = []
    for members in batches:
        logits = torch.zeros(sum(lengths[s] - 1 for s in members), V)
        places = [(s, t) for s in members for t in range(lengths[s] - 1)]
        for row, (s, t) in enumerate(places):
            logits[row, (3 * s + t) % V] = 5.0
            if (s, t) == poison:
                logits[row, 4] = float("nan")
        results.append((members, TopK.from_logits(logits, K)))
    return Computed(sequences, results)


def test_batches_are_put_in_order() -> None:
    arrays, skipped = assemble(computed([3, 5, 2, 4], [[1, 3], [0, 2]]), str, skip_non_finite=False)
    assert arrays is not None
    assert skipped == 0
    assert arrays.offsets_S1.tolist() == [0, 3, 8, 10, 14]
    expected = [(3 * s + t) % V for s, length in enumerate([3, 5, 2, 4]) for t in range(length - 1)]
    assert arrays.topk_ids_NK[:, 0].tolist() == expected
    assert arrays.vocab_size == V


def test_non_finite_positions_are_named_or_left_out() -> None:
    broken = computed([3, 5], [[1], [0]], poison=(1, 2))
    with pytest.raises(NonFiniteLogitsError, match="not finite for sequence 1 at position 2"):
        assemble(broken, lambda s: f"sequence {s}", skip_non_finite=False)
    arrays, skipped = assemble(broken, str, skip_non_finite=True)
    assert arrays is not None
    assert skipped == 1
    assert arrays.target_mask_L.tolist() == [True, True, False, True, True, False, True, False]
    assert arrays.topk_ids_NK[:, 0].tolist() == [0, 1, 3, 4, 6]


def test_sequence_without_a_finite_position_is_left_out() -> None:
    arrays, skipped = assemble(computed([2, 3], [[0, 1]], poison=(0, 0)), str, skip_non_finite=True)
    assert arrays is not None
    assert (arrays.sequences, skipped) == (1, 1)
    nothing, skipped = assemble(computed([2], [[0]], poison=(0, 0)), str, skip_non_finite=True)
    assert (nothing, skipped) == (None, 1)


def test_claims_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        try_claim(tmp_path, "a")
    (tmp_path / ".dump").mkdir()
    first = try_claim(tmp_path, "a")
    assert first is not None
    assert try_claim(tmp_path, "a") is None
    assert try_claim(tmp_path, "b") is not None
    first.release()
    assert try_claim(tmp_path, "a") is not None


def test_damaged_descriptor_counts_as_unfinished(tmp_path: Path) -> None:
    write_descriptor(tmp_path, 7, Descriptor(None, V, 3, None))
    assert read_descriptor(tmp_path, 7) == Descriptor(None, V, 3, None)
    assert read_descriptor(tmp_path, 8) is None
    (tmp_path / descriptor_name(7)).write_text('{"entry": {"path"')
    assert read_descriptor(tmp_path, 7) is None


def test_unchanged_files_are_hashed_once(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    stamps = Stamps()
    first = stamps.hash(path)
    again = Stamps.from_json(stamps.to_json())
    assert again.hash(path) == first
    path.write_bytes(b"other")
    assert again.hash(path) != first


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {}),
        ({"RANK": "3", "WORLD_SIZE": "8"}, {"rank": 3, "world_size": 8}),
        ({"RANK": "0", "WORLD_SIZE": "1"}, {}),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, {"rank": 2, "world_size": 4}),
        (
            {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10"},
            {"rank": 2, "world_size": 4},
        ),
    ],
)
def test_rank_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: dict[str, int]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _worker_of_environment() == expected


def test_flags_are_gathered() -> None:
    assert gather(DumpConfig, {"licence": "CC0", "card_notes": "n", "format": "arrow"}) == {
        "card": {"licence": "CC0", "notes": "n"},
        "shard_format": "arrow",
    }
    assert gather(DumpConfig, {"generate": True, "seed": 2}) == {"generate": {"seed": 2}}
    assert gather(DumpConfig, {"generate": {"seed": 1, "top_p": 0.5}, "seed": 2}) == {
        "generate": {"seed": 2, "top_p": 0.5}
    }
    with pytest.raises(ConfigError, match="--top-p needs --generate"):
        gather(DumpConfig, {"top_p": 0.5})


def test_saved_settings_are_settings(tmp_path: Path) -> None:
    given: dict[str, Any] = {"teacher": "t", "data": ["a", "b"], "out": tmp_path, "generate": {"seed": 1}}
    config = make_config(given)
    assert make_config(config.model_dump(mode="json", exclude_none=True)) == config


def test_claims_of_threads_exclude_each_other_too(tmp_path: Path) -> None:
    (tmp_path / ".dump").mkdir()
    held = [claim for claim in _in_threads(lambda: try_claim(tmp_path, "a"), 8) if claim is not None]
    assert len(held) == 1


def _in_threads(call: Any, count: int) -> list[Any]:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
