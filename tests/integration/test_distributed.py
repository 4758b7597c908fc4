"""Real gloo processes: the same gradients, samples and weights as in one process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from transformers import AutoModelForCausalLM

from logitcache.cache.reader import Cache

pytestmark = pytest.mark.integration
RANKS = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("student")
    return save_llama(place / "student", save_tokenizer(place / "tokenizer", TEXT), seed=1, width=16)


@pytest.fixture(scope="module")
def cache(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    place = tmp_path_factory.mktemp("cache")
    teacher_dir = save_llama(place / "teacher", student_dir, seed=2, width=16, sharpness=20)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    return cache_of_model(place / "cache", teacher, text_sequences(student_dir, TEXT, 24, 41), student_dir, k=16)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(place: Path, ranks: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Train in so many processes; what each of them saw."""
    place.mkdir(exist_ok=True)
    (place / "settings.json").write_text(json.dumps({**settings, "out": str(place / "out")}))
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={free_port()}",
        "--master-addr=127.0.0.1", str(RANKS), str(place), str(place / "settings.json"),
    ]  # fmt: skip
    if ranks == 1:
        command = [sys.executable, str(RANKS), str(place), str(place / "settings.json")]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ran.returncode == 0, ran.stderr[-6000:]
    return [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def settings_for(cache: Cache, student: Path, **more: Any) -> dict[str, Any]:
    return {
        "cache": str(cache.root),
        "student": str(student),
        "loss": "bild",
        "batch_size": 4,
        "epochs": 2,
        "max_steps": 20,
        "learning_rate": 1e-3,
        "checkpoint_every": 0,
        "trainer": {"use_cpu": True},
        **more,
    }


def samples_of_steps(seen: list[dict[str, Any]], parts: int) -> list[list[list[int]]]:
    """The samples of each global batch, sorted, over all ranks."""
    steps = len(seen[0]["samples"]) // parts
    return [
        sorted(row for one in seen for part in one["samples"][step * parts : (step + 1) * parts] for row in part)
        for step in range(steps)
    ]


def test_two_and_four_processes_train_like_one(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(cache, student_dir, eval_cache=str(cache.root))
    alone = run_ranks(tmp_path / "one", 1, settings)
    first = torch.load(tmp_path / "one" / "gradients.pt")
    for ranks in (2, 4):
        several = run_ranks(tmp_path / f"{ranks}", ranks, settings)
        assert len({one["digest"] for one in several}) == 1  # all ranks hold the same weights
        assert samples_of_steps(several, 1)[:20] == samples_of_steps(alone, 1)[:20]
        gradients = torch.load(tmp_path / f"{ranks}" / "gradients.pt")
        for name, value in first.items():
            assert torch.allclose(gradients[name], value, atol=1e-5, rtol=0), name
        assert several[0]["losses"] == pytest.approx(alone[0]["losses"], abs=1e-5)
        assert several[0]["after"] == pytest.approx(alone[0]["after"], rel=1e-3)
        assert several[1]["after"] == several[0]["after"]


def test_resuming_with_other_ranks_sees_the_same_global_batches(
    cache: Cache, student_dir: Path, tmp_path: Path
) -> None:
    settings = settings_for(cache, student_dir, checkpoint_every=5, keep_checkpoints=9, max_steps=12)
    alone = run_ranks(tmp_path / "one", 1, settings)
    halted = tmp_path / "two" / "out" / "checkpoints"
    halted.mkdir(parents=True)
    kept = sorted((tmp_path / "one" / "out" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["checkpoint-10", "checkpoint-12", "checkpoint-5"]
    shutil.copytree(kept[2], halted / "checkpoint-5")
    resumed = run_ranks(tmp_path / "two", 2, {**settings, "resume": True})
    assert samples_of_steps(resumed, 1)[:7] == samples_of_steps(alone, 1)[5:12]
    assert resumed[0]["losses"] == pytest.approx(alone[0]["losses"], abs=1e-4)


def test_fsdp_trains_and_saves_a_plain_student(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    fsdp = {"use_cpu": True, "fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}
    settings = settings_for(cache, student_dir, max_steps=4, trainer=fsdp)
    alone = run_ranks(tmp_path / "one", 1, settings_for(cache, student_dir, max_steps=4))
    sharded = run_ranks(tmp_path / "two", 2, settings)
    assert sharded[0]["wrapper"] == "FSDPStudentWithLoss"
    assert sharded[0]["losses"] == pytest.approx(alone[0]["losses"], abs=1e-4)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "out").state_dict()
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "out").state_dict()
    assert trained.keys() == expected.keys()
    assert all(torch.allclose(trained[name], expected[name], atol=1e-4) for name in expected)
