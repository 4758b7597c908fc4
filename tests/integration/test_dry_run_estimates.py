"""Dry runs say before any weights are read what fits: here the models' directories hold none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from logitcache import LogitCacheError, TrainConfig
from logitcache.cli.main import app
from logitcache.dump import plan_dump
from logitcache.models import hardware
from logitcache.models.hardware import parse_hardware
from logitcache.train import plan
from logitcache.utils.device import Devices

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, the model that made it, and the same without its weights."""
    place = tmp_path_factory.mktemp("estimates")
    model = save_llama(place / "model", save_tokenizer(place / "tokenizer", TEXT), seed=1)
    cache_of_model(
        place / "cache", AutoModelForCausalLM.from_pretrained(model).eval(), text_sequences(model, TEXT, 32, 12), model,
        k=16,
    )  # fmt: skip
    shutil.copytree(model, place / "empty")
    (place / "empty" / "model.safetensors").unlink()
    (place / "text.txt").write_text(TEXT.read_text(encoding="utf-8")[:2000], encoding="utf-8")
    return place


def settings(place: Path, model: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "teacher": place / model, "data": place / "text.txt", "out": tmp_path / "out", "max_length": 64, "top_k": 8,
    }  # fmt: skip


class Small(Devices):
    """Stands for a GPU that is nearly full."""

    def free_bytes(self, device: Any) -> int:
        return 1 << 17


def test_dump_for_another_machine(place: Path, tmp_path: Path) -> None:
    planned = plan_dump(**settings(place, "empty", tmp_path), hardware=parse_hardware("2x8GiB,10TFLOPS"))
    assert planned.estimate is not None
    assert (planned.measured, planned.bytes, planned.estimate.fits) == (False, None, True)
    assert planned.seconds == pytest.approx(planned.tokens * planned.estimate.operations / 2e13)
    whole = plan_dump(**settings(place, "model", tmp_path))
    assert whole.measured
    assert whole.bytes
    assert (whole.tokens, whole.targets, whole.shards) == (planned.tokens, planned.targets, planned.shards)
    assert whole.estimate is not None
    assert whole.estimate.fits is None
    assert not (tmp_path / "out").exists()
    with pytest.raises(LogitCacheError, match="holds no weights"):
        plan_dump(**settings(place, "empty", tmp_path))


def test_a_batch_that_was_asked_for_must_fit(place: Path, tmp_path: Path) -> None:
    """Where none was asked for, the dump halves what doesn't fit."""
    small = parse_hardware("1MiB")
    free = plan_dump(**settings(place, "empty", tmp_path), hardware=small).estimate
    asked = plan_dump(**settings(place, "empty", tmp_path), batch_tokens=1024, hardware=small).estimate
    assert free is not None
    assert asked is not None
    assert free.fits is True
    assert asked.fits is False
    assert free.memory == asked.memory
    assert asked.advice[0].startswith("--batch-tokens ")


def test_what_doesnt_fit_is_not_loaded(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "DEVICES", Small())
    planned = plan_dump(**settings(place, "empty", tmp_path), batch_tokens=64)
    assert planned.estimate is not None
    assert (planned.measured, planned.estimate.fits) == (False, False)
    assert len(planned.estimate.advice) == 1
    config = TrainConfig(cache=str(place / "cache"), student=str(place / "empty"), out=tmp_path / "out")
    assert plan(config)["estimate"].fits is False


def test_training_for_another_machine(place: Path, tmp_path: Path) -> None:
    asked = {"cache": str(place / "cache"), "out": tmp_path / "out", "batch_size": 3, "epochs": 2}
    here = plan(TrainConfig(student=str(place / "model"), **asked))
    there = plan(TrainConfig(student=str(place / "empty"), **asked), parse_hardware("80GiB,100TFLOPS"))
    assert "were not read" in there["notes"][0]
    for name in ("cache", "sequences", "tokens", "optimizer_steps", "steps_per_epoch", "parameters"):
        assert here[name] == there[name], name
    assert here["estimate"].fits is None
    assert there["estimate"].fits is True
    assert there["estimate"].rate == pytest.approx(1e14 / there["estimate"].operations)
    assert not (tmp_path / "out").exists()


def test_the_command_line_prints_it(place: Path, tmp_path: Path) -> None:
    student = [
        "train",
        "--cache",
        str(place / "cache"),
        "--student",
        str(place / "empty"),
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(app, [*student, "--dry-run", "--hardware", "1MiB", "--json"])
    estimate = json.loads(result.stdout)["estimate"]
    assert estimate["total"] == sum(estimate["memory"].values())
    assert estimate["fits"] is False
    told = CliRunner().invoke(app, [*student, "--dry-run", "--hardware", "1MiB"]).stdout
    assert "fits: no" in told
    assert "what to change: " in told
    refused = CliRunner().invoke(app, [*student, "--hardware", "1MiB"]).exception
    assert "give --dry-run with it" in str(refused)
    teacher = [
        "dump",
        "--teacher",
        str(place / "empty"),
        "--data",
        str(place / "text.txt"),
        "--out",
        str(tmp_path / "d"),
    ]
    result = CliRunner().invoke(app, [*teacher, "--dry-run", "--hardware", "8x80GiB,400TFLOPS", "--json"])
    assert json.loads(result.stdout)["estimate"]["fits"] is True
