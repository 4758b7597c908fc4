"""Training on one GPU against the CPU, and on two GPUs against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache.cache.reader import Cache

pytestmark = pytest.mark.gpu
RANKS = Path(__file__).resolve().parents[1] / "integration" / "ranks.py"
Torchrun = Callable[..., subprocess.CompletedProcess[str]]


def settings(cache: Cache, student: Path, **more: Any) -> dict[str, Any]:
    return {
        "cache": str(cache.root), "student": str(student), "loss": "bild=1.0,residual_kl=0.1", "batch_size": 8,
        "max_steps": 6, "learning_rate": 1e-3, "checkpoint_every": 0, "mixed_precision": "no", **more,
    }  # fmt: skip


def trained(cache: Cache, student: Path, out: Path, **more: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a run in this process. With several GPUs only the first is used."""
    script = "import json, sys, logitcache as lc; r = lc.train(**json.loads(sys.argv[1])); "
    script += "print(json.dumps([e['loss'] for e in r.history if 'loss' in e]))"
    asked = json.dumps({**settings(cache, student, **more), "out": str(out)})
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    done = subprocess.run(
        [sys.executable, "-c", script, asked], capture_output=True, text=True, check=False, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1]), dict(AutoModelForCausalLM.from_pretrained(out).state_dict())


def on_two(torchrun: Torchrun, place: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank of a run on two GPUs saw."""
    place.mkdir()
    (place / "settings.json").write_text(json.dumps({**asked, "out": str(place / "out")}))
    torchrun(str(RANKS), str(place), str(place / "settings.json"))
    return [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(
    cache: Cache, student_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The run on one GPU in float32."""
    return trained(cache, student_dir, tmp_path_factory.mktemp("alone") / "out", trainer={"tf32": False})


def test_like_the_cpu(cache: Cache, student_dir: Path, tmp_path: Path, alone: Any) -> None:
    losses, weights = trained(cache, student_dir, tmp_path / "cpu", trainer={"use_cpu": True})
    assert alone[0] == pytest.approx(losses, rel=1e-3)
    # AdamW's first steps are as long whatever the gradient: where that is nearly 0, rounding decides their direction.
    apart = torch.cat([(alone[1][name] - value).abs().flatten() for name, value in weights.items()])
    assert (apart > 1e-3).float().mean() < 0.01


def test_bf16_autocast_follows_float32(cache: Cache, student_dir: Path, tmp_path: Path, alone: Any) -> None:
    losses, weights = trained(cache, student_dir, tmp_path / "bf16", mixed_precision="bf16")
    assert losses == pytest.approx(alone[0], rel=0.03)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    start = AutoModelForCausalLM.from_pretrained(student_dir).state_dict()
    moved = torch.cat([(weights[name] - start[name]).flatten() for name in start])
    wanted = torch.cat([(alone[1][name] - start[name]).flatten() for name in start])
    assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.9


def test_packed_rows(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    asked = {"pack_tokens": 128, "batch_size": 4, "trainer": {"tf32": False}}
    losses, _ = trained(cache, student_dir, tmp_path / "gpu", **asked)
    expected, _ = trained(cache, student_dir, tmp_path / "cpu", **asked | {"trainer": {"use_cpu": True}})
    assert losses == pytest.approx(expected, rel=1e-3)


def test_evaluation(cache: Cache, student_dir: Path) -> None:
    on_gpu = lc.evaluate(str(cache.root), str(student_dir), device="cuda").flat()
    on_cpu = lc.evaluate(str(cache.root), str(student_dir), device="cpu").flat()
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2, abs=1e-3)


@pytest.mark.usefixtures("two_gpus")
def test_ddp_on_two(cache: Cache, student_dir: Path, tmp_path: Path, torchrun: Torchrun, alone: Any) -> None:
    ranks = on_two(torchrun, tmp_path / "ddp", settings(cache, student_dir, trainer={"tf32": False}))
    assert ranks[0]["digest"] == ranks[1]["digest"]
    assert ranks[0]["losses"] == pytest.approx(alone[0], rel=1e-3)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_fsdp_on_two(
    cache: Cache, student_dir: Path, tmp_path: Path, torchrun: Torchrun, alone: Any, mixed_precision: str
) -> None:
    trainer = {"tf32": False, "fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}
    asked = settings(cache, student_dir, trainer=trainer, mixed_precision=mixed_precision)
    ranks = on_two(torchrun, tmp_path / "fsdp", asked)
    assert ranks[0]["losses"] == pytest.approx(alone[0], rel=1e-3 if mixed_precision == "no" else 0.03)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "fsdp" / "out").state_dict()
    assert saved.keys() == alone[1].keys()
    assert {value.dtype for value in saved.values()} == {torch.float32}
