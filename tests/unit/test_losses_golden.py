"""Reference values: every loss and its gradient, in float64, for targets that hold the whole vocabulary."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import logitcache as lc
from logitcache import losses

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
CASES = sorted(key.removesuffix("/loss") for key in GOLDEN if key.endswith("/loss"))
FIELDS = {"k": "k", "T": "temperature", "g": "gamma", "a": "alpha", "b": "beta"}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_golden_values(case: str) -> None:
    group, name, *settings = case.split("/")
    params = {}
    for setting in settings:
        letter, number = re.fullmatch(r"([a-zA-Z])([\d.]+)", setting).groups()
        params[FIELDS[letter]] = int(number) if letter == "k" else float(number)
    student, teacher, labels = (
        torch.from_numpy(GOLDEN[f"{group}/{part}"]) for part in ("student_logits", "teacher_logits", "labels")
    )
    student.requires_grad_()
    targets = lc.TopK.from_logits(teacher, teacher.shape[1])

    loss = losses.get(name, **params)(student, targets, labels)
    loss.sum().backward()

    np.testing.assert_allclose(loss.detach().numpy(), GOLDEN[f"{case}/loss"], rtol=1e-9, atol=1e-14)
    gradient = GOLDEN[f"{case}/grad"]
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
