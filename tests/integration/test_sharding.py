"""FSDP and DDP in two gloo processes: what arrives at the loss, what is saved, and the same run in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from tiny_models import save_tiny
from transformers import AutoModelForCausalLM, PhiConfig

import logitcache as lc
from logitcache.cache.reader import Cache

pytestmark = pytest.mark.integration
SCRIPT = Path(__file__).with_name("several_runs.py")
RANKS = 2
SHARDED = {"state_dict_type": "SHARDED_STATE_DICT", "cpu_ram_efficient_loading": True}
FSDP = {"use_cpu": True, "fsdp": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def student(place: Path) -> Path:
    """A tied head."""
    return save_llama(place / "student", save_tokenizer(place / "tokenizer", TEXT), seed=1, width=16)


@pytest.fixture(scope="module")
def biased(student: Path, place: Path) -> Path:
    """An output layer with a bias."""
    config = PhiConfig(
        vocab_size=600,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return save_tiny(place / "biased-student", student, config)


@pytest.fixture(scope="module")
def cache(student: Path, place: Path) -> Cache:
    """Nine sequences: of five global batches of two, the last leaves a rank without any."""
    teacher_dir = save_llama(place / "teacher", student, seed=2, width=16, sharpness=20)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    return cache_of_model(
        place / "cache", teacher, text_sequences(student, TEXT, 24, 9), student, k=16, statistics=True
    )


@pytest.fixture(scope="module")
def settings(cache: Cache, student: Path, biased: Path) -> dict[str, dict[str, Any]]:
    """The settings of each run; ``out`` is added."""
    common = {
        "cache": str(cache.root),
        "student": str(student),
        "batch_size": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 0,
        "write_report": False,
        "trainer": {"use_cpu": True},
    }
    sharded = {**common, "checkpoint_every": 2, "keep_checkpoints": 9, "trainer": {**FSDP, "fsdp_config": SHARDED}}
    return {
        "biased": {**common, "student": str(biased)},
        "lora": {**common, "lora_rank": 2},
        "sharded": sharded,
        "resumed": {**sharded, "resume": True},
        "resumed as DDP": {**sharded, "resume": True, "trainer": {"use_cpu": True}},
        "resumed whole": {**sharded, "resume": True, "trainer": FSDP},
        "half": {
            **common,
            "loss": "recording",
            "eval_cache": str(cache.root),
            "mixed_precision": "bf16",
            "trainer": FSDP,
        },
    }


@pytest.fixture(scope="module")
def ran(settings: dict[str, dict[str, Any]], place: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Run them all, one after the other in the same two processes; gives what each rank saw of a run."""
    runs = {name: {**values, "out": str(place / name)} for name, values in settings.items()}
    for name in ("resumed", "resumed as DDP", "resumed whole"):
        runs[name]["starts from"] = str(place / "sharded" / "checkpoints" / "checkpoint-2")
    (place / "runs.json").write_text(json.dumps(runs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(place / "runs.json")],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for rank in ranks:
            _, told = rank.communicate(timeout=300)
            assert rank.returncode == 0, told[-6000:]
    finally:
        for rank in ranks:
            rank.kill()  # one that waits for another which has failed
    return lambda name: [json.loads((place / f"{name}.{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone(settings: dict[str, dict[str, Any]], place: Path) -> Callable[[str], lc.TrainResult]:
    """The same run in this process, in float32 and without checkpoints."""

    def train(name: str) -> lc.TrainResult:
        return lc.train(
            **{
                **settings[name],
                "loss": "bild" if settings[name].get("loss") is None else "residual_kl",
                "out": place / f"{name} alone",
                "checkpoint_every": 0,
                "mixed_precision": "no",
                "trainer": {"use_cpu": True},
            }
        )

    return train


def losses(result: lc.TrainResult) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]


def assert_same_student(one: Path, two: Path, atol: float = 1e-4) -> None:
    """transformers loads both, and they say the same."""
    ids = torch.arange(1, 17)[None]
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (one, two)]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in models]
    assert torch.allclose(*logits, atol=atol, rtol=0)


def test_a_rank_without_targets_does_not_stop_ddp(
    ran: Callable[[str], list[dict[str, Any]]], alone: Callable[[str], lc.TrainResult], place: Path
) -> None:
    several = ran("biased")
    assert several[0]["wrapper"] == ["DDP"]
    assert sorted(one["targets"][-1] > 0 for one in several) == [False, True]
    assert [one["searches"] for one in several] == [False, False]
    assert several[0]["losses"] == pytest.approx(losses(alone("biased")), abs=1e-4)
    assert_same_student(place / "biased", place / "biased alone")


def test_ddp_does_not_search_with_adapters(
    ran: Callable[[str], list[dict[str, Any]]], alone: Callable[[str], lc.TrainResult]
) -> None:
    several = ran("lora")
    assert [one["searches"] for one in several] == [False, False]
    assert several[0]["losses"] == pytest.approx(losses(alone("lora")), abs=1e-4)


def test_sharded_checkpoints_and_a_tied_student(
    ran: Callable[[str], list[dict[str, Any]]], alone: Callable[[str], lc.TrainResult], place: Path
) -> None:
    assert ran("sharded")[0]["wrapper"] == ["FSDP"]
    assert ran("sharded")[0]["losses"] == pytest.approx(losses(alone("sharded")), abs=1e-4)
    trained = AutoModelForCausalLM.from_pretrained(place / "sharded")
    assert trained.lm_head.weight is trained.model.embed_tokens.weight
    assert_same_student(place / "sharded", place / "sharded alone")
    assert ran("resumed")[0]["losses"] == pytest.approx(ran("sharded")[0]["losses"], abs=1e-5)
    assert_same_student(place / "resumed", place / "sharded", atol=1e-6)
    checkpoint = place / "sharded" / "checkpoints" / "checkpoint-2"
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir()
    AutoModelForCausalLM.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("name", "mend"), [("resumed as DDP", "set trainer.fsdp"), ("resumed whole", "state_dict_type = SHARDED")]
)
def test_a_sharded_checkpoint_is_refused_where_it_can_not_be_read(
    ran: Callable[[str], list[dict[str, Any]]], name: str, mend: str
) -> None:
    error = ran(name)[0]["error"]
    assert error.startswith("ResumeMismatchError: ")
    assert mend in error


def test_fsdp_in_half_precision_does_not_round_targets_and_losses(
    ran: Callable[[str], list[dict[str, Any]]], alone: Callable[[str], lc.TrainResult]
) -> None:
    several, expected = ran("half"), losses(alone("half"))
    assert several[0]["wrapper"] == ["FSDP"]
    for one in several:
        assert {dtype for each in one["at the loss"] for dtype, _ in each.values()} == {"torch.float32"}
        assert one["at the loss"] == one["fed"][: len(one["at the loss"])]
        assert len(one["at the loss"]) >= 4
        assert set(one["loss dtypes"]) == {"torch.float32"}
        assert one["metric dtypes"] == ["torch.float64"]
    assert several[0]["losses"] == pytest.approx(expected, rel=0.02)
    assert several[0]["losses"] != pytest.approx(expected, rel=1e-5)  # it did compute in half precision
