"""Logits in float32 from an output layer in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import random_llama
from transformers import LlamaForCausalLM

from logitcache.data import TokenSequence
from logitcache.engines.transformers_engine import TransformersEngine
from logitcache.errors import LogitCacheWarning
from logitcache.models import find_head, product, wide_head

V = 300


def llama(dtype: torch.dtype, *, bias: bool = False) -> LlamaForCausalLM:
    model = random_llama(V, layers=1, bias=bias)
    with torch.no_grad():
        model.lm_head.weight *= 40  # logits of 20 and more, as large models have them
    return model.to(dtype)


def sequences() -> list[TokenSequence]:
    tokens = np.random.default_rng(0).integers(0, V, (4, 24)).astype(np.uint32)
    mask = np.ones(24, dtype=bool)
    mask[-1] = False
    return [TokenSequence(row, mask) for row in tokens]


@pytest.mark.parametrize("bias", [False, True])
def test_log_probs_of_a_bf16_teacher_are_those_of_its_own_weights(bias: bool) -> None:
    model, rows = llama(torch.bfloat16, bias=bias), sequences()
    errors = {}
    for wide in (True, False):
        engine = TransformersEngine(model, top_k=V, wide_head=wide)
        assert engine.info.head_dtype == ("float32" if wide else None)
        targets = engine._run(rows)
        with torch.inference_mode():
            hidden = engine._hidden(engine.head, rows).double()
            output = engine.head.output
            logits = hidden @ output.weight.double().T + (output.bias.double() if bias else 0)
            exact = logits.log_softmax(1).gather(1, targets.ids)
        errors[wide] = float((targets.logprobs - exact).abs().max())
    assert errors[True] < 1e-4
    assert errors[False] > 1 / 64


def test_the_weight_is_never_copied_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    head = find_head(llama(torch.bfloat16, bias=True))
    hidden = torch.randn(5, 32).bfloat16()
    whole = wide_head.wide_logits(head, hidden)
    monkeypatch.setattr(product, "_WIDENED_BYTES", 4 * 32 * 7)
    seen = []
    monkeypatch.setattr(product, "operand", lambda matrix, dtype: seen.append(len(matrix)) or matrix.to(torch.float32))
    torch.testing.assert_close(wide_head.wide_logits(head, hidden), whole)
    assert max(seen) == 7


def test_float32_and_heads_of_several_modules_are_left_alone(tmp_path: Path) -> None:
    assert not wide_head.can_widen(find_head(llama(torch.float32)))
    model = llama(torch.bfloat16)
    model.lm_head.register_forward_hook(lambda module, args, output: output)
    with pytest.warns(LogitCacheWarning, match="its logits stay in bfloat16"):
        assert TransformersEngine(model, top_k=8).info.head_dtype is None
