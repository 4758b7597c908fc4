"""The benchmark for GPUs, rehearsed on a CPU: the same code with tiny shapes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks._gpu_machines import MACHINES, TINY, build, build_spread, machine_for
from logitcache.models.cost import forward_bytes
from logitcache.models.sizes import sizes_of
from logitcache.train.estimate import Shape, memory_of

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_tiny_writes_one_json_and_one_markdown_file(tmp_path: Path) -> None:
    done = benchmark("--tiny", "--out", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["gpu.json", "gpu.md"]
    results = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert results["dump"]["tokens"] > 100
    assert results["dump"]["time_ratio"] > 0
    assert set(results["loader"]) == {"stream", "stream packed"}
    assert [row["loss"] for row in results["head"]] == ["linear + cross_entropy", "bild", "bild=1.0,residual_kl=0.1"]
    assert [row["way"] for row in results["step"]] == ["fine-tuning", "online", "bild from a cache"]
    page = (tmp_path / "results" / "gpu.md").read_text()
    assert page.count("|---|") >= 4
    assert "no GPU" in page.splitlines()[0] or torch.cuda.is_available()
    assert str(tmp_path) not in page + json.dumps(results)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("target", ["test-gpu", "bench-gpu"])
def test_without_a_gpu_it_fails_with_one_clear_line(target: str, tmp_path: Path) -> None:
    (tmp_path / "installed").touch()
    command = ["make", "--silent", f"VENV={Path(sys.executable).parents[1]}", f"STAMP={tmp_path / 'installed'}", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert lines[0].startswith("no GPU: torch")


@pytest.mark.parametrize(
    ("memory", "devices", "name"), [(7, 1, "8 GiB"), (23, 2, "24 GiB"), (78, 7, "80 GiB"), (79, 8, "8 x 80 GiB")]
)
def test_the_machine_is_chosen_by_memory(memory: int, devices: int, name: str) -> None:
    chosen = machine_for(memory * GIB, devices)
    assert chosen is not None
    assert chosen.name == name
    assert machine_for(5 * GIB, 8) is None


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_the_shapes_fit_by_formula(machine: object) -> None:
    assert isinstance(machine, type(TINY))
    meta = torch.device("meta")
    assert machine.student.vocab_size == machine.online.vocab_size
    teacher, online = (sizes_of(build(config, meta, torch.bfloat16)) for config in (machine.teacher, machine.online))
    student = sizes_of(build(machine.student, meta, torch.float32))
    passes = machine.batch_tokens * forward_bytes(teacher.width, teacher.inner, 2)
    # The bare pass makes all logits of a batch.
    logits = 2 * machine.batch_tokens * teacher.vocab_size
    assert teacher.weight_bytes / machine.devices + passes + logits < machine.memory
    shape = Shape(
        rows=1, row_tokens=machine.step_tokens, arithmetic="mixed", masked=False, eager=False, checkpointing=False,
        dense=False, top_k=64, ranks=1, sharded=False, device_memory=machine.memory,
    )  # fmt: skip
    # Online distillation holds both models' logits, some in float32, and their gradients.
    logits = 20 * machine.step_tokens * max(student.vocab_size, online.vocab_size)
    assert sum(memory_of(student, shape).values()) + online.weight_bytes + logits < machine.memory


def test_a_model_spread_over_devices_is_whole() -> None:
    cpu = torch.device("cpu")
    config = copy.deepcopy(TINY.teacher)
    config.tie_word_embeddings = False
    spread, whole = build_spread(config, [cpu, cpu], torch.float32), build(config, cpu, torch.float32)
    whole.load_state_dict(spread.state_dict())
    input_ids_1L = torch.arange(1, 17)[None]
    assert torch.equal(spread(input_ids=input_ids_1L).logits, whole(input_ids=input_ids_1L).logits)
