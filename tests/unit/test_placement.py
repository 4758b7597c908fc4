"""Where a device map will put a teacher, and the batch size that follows: large models, of which no weight is read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_devices import CUDA, GIB, FakeDevices
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import logitcache as lc
from logitcache.dump.config import DumpConfig
from logitcache.dump.settings import resolve
from logitcache.engines.batch_size import tokens_that_fit
from logitcache.models.identity import TeacherFiles
from logitcache.models.placement import spread_bytes, weights_by_device

LAYERS = 32
SEVEN_BILLION = LlamaConfig(
    vocab_size=49_152,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=LAYERS,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=2048,
    dtype=torch.bfloat16,
)
LAYER = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336 + 2 * 4096)
ENDS = 2 * 2 * 49_152 * 4096 + 2 * 4096
WEIGHTS = LAYERS * LAYER + ENDS  # 13.4 GiB


@cache
def model() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(SEVEN_BILLION, dtype=torch.bfloat16)


def near(found: int, wanted: float) -> bool:
    """Modules stay whole, so a device may have a layer or two more or less than its share."""
    return abs(found - wanted) <= 2 * LAYER


class TestSpread:
    @pytest.mark.parametrize("gpus", [2, 3, 4])
    def test_evenly(self, gpus: int) -> None:
        held = spread_bytes(model(), "auto", dict.fromkeys(range(gpus), 80 * GIB))
        assert list(held) == list(range(gpus))
        assert sum(held.values()) == pytest.approx(WEIGHTS, rel=1e-3)
        assert all(near(each, WEIGHTS / gpus) for each in held.values())

    def test_a_full_device_gets_nothing(self) -> None:
        held = spread_bytes(model(), "auto", {0: 80 * GIB, 1: 0, 2: 80 * GIB})
        assert list(held) == [0, 2]

    def test_one_after_the_other(self) -> None:
        held = spread_bytes(model(), "sequential", {0: 8 * GIB, 1: 80 * GIB})
        assert near(held[0], 8 * GIB)
        assert sum(held.values()) == pytest.approx(WEIGHTS, rel=1e-3)

    def test_little_on_the_first(self) -> None:
        held = spread_bytes(model(), "balanced_low_0", dict.fromkeys(range(3), 80 * GIB))
        assert held.get(0, 0) < LAYER
        assert near(held[1], WEIGHTS / 2)

    def test_what_is_left_on_the_cpu_comes_to_the_first_device_in_its_turn(self) -> None:
        held = spread_bytes(model(), "auto", {0: 8 * GIB})
        assert list(held) == [0]
        assert 0.9 * 8 * GIB - 3 * LAYER < held[0] < 0.9 * 8 * GIB + LAYER
        assert spread_bytes(model(), "auto", {0: 1})[0] >= LAYER

    def test_quantised_weights_take_what_their_files_do(self) -> None:
        held = spread_bytes(model(), "auto", {0: 6 * GIB, 1: 6 * GIB}, stored_bytes=4 * GIB)
        assert list(held) == [0, 1]
        assert sum(held.values()) == pytest.approx(4 * GIB, rel=1e-3)

    def test_tied_weights_count_once(self) -> None:
        config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, tie_word_embeddings=True)
        with torch.device("meta"):
            tied = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        held = spread_bytes(tied, "auto", {0: GIB, 1: GIB})
        assert sum(held.values()) == pytest.approx(4 * sum(value.numel() for value in tied.parameters()), rel=1e-3)


@pytest.fixture(scope="module")
def teacher(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a teacher of 7 billion weights; the file of weights has their size, and takes no space."""
    place = tmp_path_factory.mktemp("teacher")
    SEVEN_BILLION.architectures = ["LlamaForCausalLM"]
    SEVEN_BILLION.save_pretrained(place)
    AutoTokenizer.from_pretrained(smollm2_dir).save_pretrained(place)
    with (place / "model.safetensors").open("wb") as file:
        file.truncate(WEIGHTS)
    return place


class TestByDevice:
    def held(self, teacher: Path, devices: FakeDevices, **more: Any) -> dict[torch.device, int]:
        asked = {"dtype": torch.bfloat16, "device": CUDA[0], "devices": devices} | more
        return weights_by_device(TeacherFiles("teacher", teacher), **asked)

    def test_one_device_has_all(self, teacher: Path) -> None:
        assert self.held(teacher, FakeDevices(GIB)) == {CUDA[0]: WEIGHTS}
        assert self.held(teacher, FakeDevices(GIB), processes=4) == {CUDA[0]: WEIGHTS // 4}
        assert self.held(teacher, FakeDevices(GIB, GIB), device_map="cuda:1") == {CUDA[1]: WEIGHTS}

    def test_without_gpus_the_cpu_has_all(self, teacher: Path) -> None:
        cpu = torch.device("cpu")
        assert self.held(teacher, FakeDevices(), device=cpu, device_map="auto") == {cpu: WEIGHTS}

    def test_the_dtype_in_memory_counts(self, teacher: Path) -> None:
        held = self.held(teacher, FakeDevices(*[80 * GIB] * 2), device_map="auto", dtype=torch.float32)
        assert sum(held.values()) == pytest.approx(2 * WEIGHTS, rel=1e-3)

    def test_no_such_device(self, teacher: Path) -> None:
        with pytest.raises(lc.LogitCacheError, match="can't be used"):
            self.held(teacher, FakeDevices(GIB), device_map="cuda:1")


@pytest.fixture
def ask(teacher: Path, heldout_text: Path, tmp_path: Path) -> Any:
    """Gives the batch size of a dump on some devices."""

    def batch_tokens(*free_bytes: int, **more: Any) -> int:
        settings = {"teacher": str(teacher), "data": [str(heldout_text)], "out": tmp_path / "out", "device": "cuda"}
        config = DumpConfig.parse(settings | more)
        found = resolve(config, devices=FakeDevices(*free_bytes)).config.batch_tokens
        assert found is not None
        return found

    return batch_tokens


class TestBatchSize:
    """The weights of this teacher fit on no single one of these devices."""

    def test_a_node_with_room_gets_long_passes(self, ask: Any) -> None:
        room = 12 * GIB - WEIGHTS // 4
        found = ask(*[12 * GIB] * 4, device_map="auto")
        assert found >= tokens_that_fit(room - 2 * LAYER, SEVEN_BILLION, 2)
        assert found >= 16_384

    def test_the_smallest_room_decides(self, ask: Any) -> None:
        assert ask(12 * GIB, 12 * GIB, 12 * GIB, 7 * GIB, device_map="auto") < ask(*[12 * GIB] * 4, device_map="auto")

    def test_no_room_gives_the_least(self, ask: Any) -> None:
        assert ask(12 * GIB) == 2_048  # the longest sequence
        assert ask(8 * GIB, 8 * GIB, device_map="sequential") == 2_048

    def test_a_reference_takes_room_on_the_first(self, ask: Any, smollm2_dir: Path, tmp_path: Path) -> None:
        reference = tmp_path / "reference"
        AutoTokenizer.from_pretrained(smollm2_dir).save_pretrained(reference)
        SEVEN_BILLION.save_pretrained(reference)
        with (reference / "model.safetensors").open("wb") as file:
            file.truncate(6 * GIB)
        free = [12 * GIB] * 4
        with_reference = ask(*free, device_map="auto", reference=str(reference), top_k=32, candidates=8)
        assert 1_024 < with_reference < ask(*free, device_map="auto")
