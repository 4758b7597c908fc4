"""Whole steps on tensors without values: nothing makes the host wait, and no large product runs in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fake_runs import Call, as_on_a_gpu, fake_weights
from tiny_models import random_llama

import logitcache as lc
from logitcache.data import TokenSequence
from logitcache.engines.transformers_engine import TransformersEngine
from logitcache.losses import fused
from logitcache.stream import Batch
from logitcache.targets import largest
from logitcache.targets.beyond import Beyond

V, LENGTH, ROWS, CHUNK = 1031, 48, 8, 64


def packed_batch() -> Batch:
    """Rows of two documents each, with targets at all positions but the last of a document."""
    half = LENGTH // 2
    positions = torch.arange(half).repeat(2)
    index = (torch.arange(ROWS * 2)[:, None] * half + torch.arange(half - 1)).flatten()
    logits = torch.randn(len(index), V, generator=torch.Generator().manual_seed(1))
    targets = lc.TopK.from_logits(logits * 3, 16, statistics=True)
    input_ids = torch.randint(V, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    labels = input_ids.flatten()[index + 1]
    return Batch(
        input_ids=input_ids,
        position_ids=positions.expand(ROWS, -1).clone(),
        target_index=index,
        targets=targets,
        labels=labels,
        batch_targets=len(index),
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_LEAST_ROWS", CHUNK)
    monkeypatch.setattr(fused, "CHUNK_BYTES", 4 * V * CHUNK)


@pytest.mark.parametrize("loss", ["bild", "bild=1.0,residual_kl=1.0", "bild=1.0,cross_entropy=0.1", "dkd", "normkd"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_training_step(loss: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = lc.losses.loss_model(random_llama(V, bias=bias), loss)
    batch = packed_batch()
    with as_on_a_gpu(monkeypatch) as (mode, log):
        fake_weights(module, mode)
        fake = batch._map(
            lambda part: part._map(mode.from_tensor) if isinstance(part, lc.TopK) else mode.from_tensor(part)
        )
        with mode, log:
            with torch.autocast("cpu", torch.bfloat16):
                value, _ = module(fake)
            value.backward()
    assert all(parameter.grad is not None for parameter in module.student.parameters())
    products = log.products_with(V)
    assert len(products) >= len(batch.labels) // CHUNK
    for call in products:
        assert all(dtype == torch.bfloat16 for dtype, _ in multiplied(call)), call
    largest_rows = max(shape[0] for call in log.calls for _, shape in call.gives if len(shape) == 2 and shape[1] == V)
    assert largest_rows <= CHUNK


def multiplied(call: Call) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """The two operands of a product; what it is added to may be float32."""
    return call.reads[1:3] if call.name in {"addmm", "baddbmm"} else call.reads[:2]


@pytest.mark.parametrize(
    "settings",
    [{"wide_head": False}, {}, {"statistics": True}, {"beyond": Beyond(tail_samples=4)}],
    ids=["bf16 head", "float32 head", "statistics", "tail samples"],
)
def test_a_dump_batch(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama(V).to(torch.bfloat16)
    engine = TransformersEngine(model, top_k=16, **settings)
    monkeypatch.setattr(engine.output, "chunk_rows", CHUNK)
    monkeypatch.setattr(largest, "_TILE_BYTES", {"cpu": 4 * CHUNK * (V // 3)})
    tokens = np.random.default_rng(0).integers(0, V, (ROWS, LENGTH)).astype(np.uint32)
    mask = np.ones(LENGTH, dtype=bool)
    mask[-1] = False
    sequences = [TokenSequence(row, mask) for row in tokens]
    with as_on_a_gpu(monkeypatch) as (mode, log):
        fake_weights(model, mode)
        with mode, log, torch.inference_mode():
            targets = engine._run(sequences)
    assert len(targets) == ROWS * (LENGTH - 1)
    for call in log.products_with(V):
        assert all(dtype == torch.bfloat16 for dtype, _ in multiplied(call)), call
    wide = [shape for call in log.calls for _, shape in call.gives if V in shape]
    assert max(shape[0] for shape in wide if len(shape) == 2 and shape != (V, 32)) <= CHUNK
    wide_from = {
        call.name for call in log.calls if any(dtype == torch.float32 and V in shape for dtype, shape in call.gives)
    }
    if settings == {"wide_head": False}:  # no float32 copy of the logits is made, only of some columns at a time
        assert not wide_from
    if not settings:  # the product leaves in float32, and is not copied again
        assert wide_from <= {"empty", "mm", "slice", "detach", "alias", "scatter_", "view"}
