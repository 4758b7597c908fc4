"""What training makes of the devices it finds: several GPUs, precision, ranks, and a pass that reaches a part only."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, TrainingArguments

import logitcache as lc
from logitcache.errors import ConfigError, LogitCacheWarning, TargetsError
from logitcache.losses import Sealed, StudentWithLoss, loss_model
from logitcache.stream import Batch, Layout
from logitcache.train import TrainConfig, precision
from logitcache.train.arguments import argument_values, training_arguments
from logitcache.train.precision import describe_precision, warn_of_half_weights, with_precision
from logitcache.train.processes import check_processes, reaches_all, unreached
from logitcache.utils.device import Devices

SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


class Gpus(Devices):
    """So many GPUs, which are never touched."""

    def __init__(self, count: int = 1, *, bf16: bool = True) -> None:
        self._count, self._bf16 = count, bf16

    def count(self, kind: str) -> int:
        return self._count if kind == "cuda" else 0

    def has_bf16(self, device: torch.device) -> bool:
        return self._bf16


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.parse({"cache": "cache", "student": "student", "out": "out", **settings})


def values(settings: TrainConfig) -> dict[str, Any]:
    return argument_values(settings, Layout(batch_size=8, micro_batch_size=4), [2], resumes=False)


def test_several_gpus_of_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"4 GPUs.*torchrun --nproc-per-node 4 .*CUDA_VISIBLE_DEVICES=0"):
        check_processes(config(), Gpus(4))
    check_processes(config(), Gpus(1))
    check_processes(config(trainer={"use_cpu": True}), Gpus(4))
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_processes(config(), Gpus(4))


def test_they_are_refused_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Devices, "count", lambda self, kind: 2)
    with pytest.raises(ConfigError, match="2 GPUs are visible"):
        lc.train(cache=tmp_path / "none", student=tmp_path / "none", out=tmp_path / "out")


def test_the_trainer_never_divides_a_batch_over_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 3))
    settings = config(out=tmp_path, trainer={"use_cpu": True})
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 3"):
        training_arguments(settings, Layout(batch_size=8, micro_batch_size=4), [2], resumes=False)


@pytest.mark.parametrize(
    ("settings", "devices", "expected"),
    [
        ({}, Gpus(), "bf16"),
        ({}, Gpus(bf16=False), "no"),
        ({}, Gpus(0), "no"),
        ({"trainer": {"use_cpu": True}}, Gpus(), "no"),
        ({"dtype": "bf16"}, Gpus(), "no"),
        ({"mixed_precision": "no"}, Gpus(), "no"),
        ({"mixed_precision": "bf16"}, Gpus(0), "bf16"),
    ],
)
def test_precision_by_device(settings: dict[str, Any], devices: Devices, expected: str) -> None:
    assert with_precision(config(**settings), devices).mixed_precision == expected


def test_bf16_is_taken_without_an_accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = config(out=tmp_path, mixed_precision="bf16")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not values(settings)["use_cpu"]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert not values(config())["use_cpu"]
    arguments = training_arguments(settings, Layout(batch_size=8, micro_batch_size=4), [2], resumes=False)
    assert arguments.bf16
    assert arguments.device.type == "cpu"


def test_what_stays_float32_runs_in_tf32_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert values(config())["tf32"] is None
    monkeypatch.setattr(precision.Devices, "count", Gpus(1).count)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for capability, expected in (((9, 0), True), ((7, 5), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert values(config())["tf32"] is expected
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert values(config(trainer={"tf32": False}))["tf32"] is False
    assert describe_precision(config(), Gpus()) == "bf16 arithmetic, fp32 weights, TF32 for float32 products"
    assert describe_precision(config(), Gpus(0)) == "fp32 arithmetic, fp32 weights"


def test_trained_weights_in_half_precision_warn() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).bfloat16()
    with pytest.warns(LogitCacheWarning, match=r"bfloat16.*--mixed-precision bf16"):
        warn_of_half_weights(model, config(dtype="bf16"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_half_weights(model, config(mixed_precision="bf16", trainer={"fsdp": True}))
        model[0].requires_grad_(False)  # the base of an adapter
        model[1].float()
        warn_of_half_weights(model, config(dtype="bf16"))


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_ranks_that_would_share_rows_are_refused(name: str) -> None:
    for asked in ({name: 2}, ParallelismConfig(**{name: 2})):
        with pytest.raises(ConfigError, match=f"{name} = 2"):
            check_processes(config(trainer={"parallelism_config": asked}))


def test_ranks_that_share_no_rows_are_taken() -> None:
    settings = config(trainer={"parallelism_config": {"dp_replicate_size": 2, "dp_shard_size": 2}})
    check_processes(settings)
    assert values(settings)["parallelism_config"].data_parallel_size == 4


def test_a_parameter_that_no_pass_reaches_is_found() -> None:
    module = loss_model(LlamaForCausalLM(LlamaConfig(**SIZES)))
    device = torch.device("cpu")
    assert reaches_all(module, device)
    module.student.model.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    assert unreached(module, device) == ["student.model.unused"]
    assert not reaches_all(module, device)
    module.student.model.unused.requires_grad_(False)
    assert reaches_all(module, device)
    assert all(value.grad is None for value in module.parameters())


def batch(rows: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Ten tokens, with targets at so many positions."""
    ids, index = torch.arange(10), torch.arange(rows)
    targets = lc.TopK.from_logits(torch.randn(rows, 30, generator=torch.Generator().manual_seed(0)), 4)
    cast = lc.TopK(targets.ids, targets.logprobs.to(dtype), targets.residual_logprob, 30)
    return Batch(ids[None], ids[None], index, cast, ids[index + 1])


def test_a_batch_without_targets_reaches_every_parameter() -> None:
    module = StudentWithLoss(PhiForCausalLM(PhiConfig(**SIZES)), lc.losses.get("bild"))
    assert module.head.bias is not None
    loss, stats = module(batch(0))
    loss.backward()
    assert stats.tokens == 0
    assert [name for name, value in module.named_parameters() if value.grad is None] == []
    assert all(not value.grad.any() for value in module.parameters() if value.grad is not None)


def test_a_sealed_batch_is_the_same_and_a_cast_one_is_refused() -> None:
    module = loss_model(LlamaForCausalLM(LlamaConfig(**SIZES)))
    assert module(Sealed(batch(4)))[0] == module(batch(4))[0]
    with pytest.raises(TargetsError, match=r"bfloat16.*Sealed"):
        module(batch(4, torch.bfloat16))
