"""The batch size if the user gives none, on devices with any amount of free memory."""

from __future__ import annotations

import pytest
import torch
from fake_devices import CUDA, GIB, FakeDevices
from transformers import LlamaConfig

from logitcache.engines.batch_size import CPU_TOKENS, automatic_batch_tokens, tokens_that_fit

SEVEN_BILLION = LlamaConfig(hidden_size=4096, intermediate_size=14_336)


def test_a_cpu_has_a_fixed_batch_size() -> None:
    assert automatic_batch_tokens({torch.device("cpu"): 14 * GIB}, SEVEN_BILLION, 4) == CPU_TOKENS


def test_gpu_memory_counts_without_the_weights() -> None:
    found = automatic_batch_tokens({CUDA[0]: 14 * GIB}, SEVEN_BILLION, 2, FakeDevices(24 * GIB))
    assert found == tokens_that_fit(10 * GIB, SEVEN_BILLION, 2) == 32_768


def test_the_device_with_the_least_free_memory_decides() -> None:
    held = {CUDA[0]: 14 * GIB, CUDA[2]: 14 * GIB}
    devices = FakeDevices(24 * GIB, 0, 20 * GIB)  # the second one is full, and holds nothing of the teacher
    assert automatic_batch_tokens(held, SEVEN_BILLION, 2, devices) == tokens_that_fit(6 * GIB, SEVEN_BILLION, 2)
    assert tokens_that_fit(6 * GIB, SEVEN_BILLION, 2) < tokens_that_fit(10 * GIB, SEVEN_BILLION, 2)


@pytest.mark.parametrize("gib", [0, 1, 3, 8, 24, 80, 640])
def test_more_free_memory_never_gives_a_smaller_batch(gib: int) -> None:
    less, more = (tokens_that_fit(size * GIB, SEVEN_BILLION, 2) for size in (gib, gib + 1))
    assert 1_024 <= less <= more <= 65_536
    assert less.bit_count() == 1


def test_some_memory_is_kept_free() -> None:
    room = 10 * GIB
    tokens = tokens_that_fit(room, SEVEN_BILLION, 2)
    assert tokens * 2 * (8 * 4096 + 3 * 14_336) <= room - 2 * GIB


def test_configuration_without_a_feed_forward_width() -> None:
    class Plain:
        hidden_size = 768

    assert tokens_that_fit(8 * GIB, Plain(), 2) == 65_536
