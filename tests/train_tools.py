"""What the tests of training look at: the weights and the losses of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import logitcache as lc


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(path).state_dict())


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def losses_of(result: lc.TrainResult) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]
