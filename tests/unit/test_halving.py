"""A batch that runs out of memory is tried in halves, and nothing of it is alive by then."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_devices import FakeDevices
from torch import Tensor
from transformers import AutoModelForCausalLM

from logitcache.data import TokenSequence
from logitcache.engines import Generation
from logitcache.engines.halving import in_halves
from logitcache.engines.transformers_engine import TransformersEngine
from logitcache.errors import ModelError

ROOM = 3  # rows of a batch


def row(length: int = 8) -> TokenSequence:
    return TokenSequence(np.arange(1, length + 1, dtype=np.uint32), np.ones(length, bool))


class Tight:
    """A hook of a model whose device has room for a few rows only; it keeps weak references to what a pass made."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Tensor]] = []
        self.alive_at_retry: list[int] = []
        self.failed = False

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        if self.failed:
            self.alive_at_retry.append(sum(made() is not None for made in self.made))
            self.failed = False
        self.made.append(weakref.ref(output))
        if len(output) > ROOM:
            self.failed = True
            raise torch.OutOfMemoryError("no room")


@pytest.fixture
def tight(tiny_llama_dir: Path) -> tuple[TransformersEngine, Tight, FakeDevices]:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    devices = FakeDevices()
    engine = TransformersEngine(model, top_k=4, batch_tokens=4096, devices=devices)
    hook = Tight()
    model.model.layers[0].mlp.register_forward_hook(hook)
    return engine, hook, devices


def without_copies(devices: FakeDevices) -> list[tuple[object, ...]]:
    return [entry for entry in devices.log if entry[0] not in ("copy", "event")]


def test_failed_batch_is_gone_when_halves_are_scored(tight: tuple[TransformersEngine, Tight, FakeDevices]) -> None:
    engine, hook, devices = tight
    ((which, targets),) = engine.score([row()] * 8)
    assert which == list(range(8))
    assert len(targets) == 64
    assert hook.alive_at_retry == [0, 0, 0]  # eight rows, and twice four
    assert without_copies(devices) == [("empty", torch.device("cpu"))] * 3


def test_failed_batch_is_gone_when_halves_are_answered(tight: tuple[TransformersEngine, Tight, FakeDevices]) -> None:
    engine, hook, devices = tight
    ((which, answered),) = engine.answer([row()] * 8, Generation(max_new_tokens=2))
    assert which == list(range(8))
    assert [len(sequence.token_ids_L) for sequence in answered] == [10] * 8
    assert hook.alive_at_retry == [0, 0, 0]
    assert len(without_copies(devices)) == 3


def test_no_room_for_one() -> None:
    def run(items: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(ModelError, match="1 items"):
        in_halves(range(4), run, halve=True, empty_cache=lambda: None, refusal=lambda items: f"{len(items)} items")
    with pytest.raises(ModelError, match="4 items"):
        in_halves(range(4), run, halve=False, empty_cache=lambda: None, refusal=lambda items: f"{len(items)} items")


@pytest.mark.parametrize("room", range(1, 9))
def test_order_is_kept(room: int) -> None:
    def run(items: Sequence[int]) -> list[int]:
        if len(items) > room:
            raise torch.OutOfMemoryError("no room")
        return list(items)

    parts = in_halves(range(8), run, halve=True, empty_cache=lambda: None, refusal=str)
    assert [item for part in parts for item in part] == list(range(8))
    assert max(map(len, parts)) <= room


@pytest.mark.parametrize("rows", [1, 2])
def test_running_out_while_padding_is_tried_says_nothing_about_padding(rows: int, tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    engine = TransformersEngine(model, top_k=4, batch_tokens=4096)
    failing = [True]

    def hook(module: Any, inputs: Any, output: Tensor) -> None:
        if failing and len(output) == rows:  # a prompt by itself is tried first, and then two
            failing.clear()
            raise torch.OutOfMemoryError("no room")

    model.model.layers[0].mlp.register_forward_hook(hook)
    ((_, answered),) = engine.answer([row()] * 4, Generation(max_new_tokens=2))
    assert len(answered) == 4
    assert not failing
    assert engine._heeds_padding is True
