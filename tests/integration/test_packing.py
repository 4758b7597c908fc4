"""Packed or not, each token has the same loss: attention and positions never cross from one document to the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memory_cache import MemoryCache
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

import logitcache as lc
from logitcache.losses import StudentWithLoss
from logitcache.models.documents import BY_DOCUMENT, register
from logitcache.stream import Selection
from logitcache.train.packing import check_packing

pytestmark = pytest.mark.integration
SHAPE: dict[str, Any] = {
    "vocab_size": 500, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
SHAPES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "mistral-sliding": MistralConfig(**SHAPE, sliding_window=5),
    "gpt2": GPT2Config(vocab_size=500, n_positions=16, n_embd=32, n_layer=2, n_head=4),
}


def small_cache() -> MemoryCache:
    return MemoryCache.random(shards=3, largest=6, longest=15, seed=11, k=8, vocab_size=500, first_word=200)


@torch.no_grad()
def token_losses(module: StudentWithLoss, cache: MemoryCache, flatten: bool = False, **layout: Any) -> dict[Any, float]:
    """The loss of each position, by (sequence's own number, position in it)."""
    found = {}
    for batch in lc.stream(cache, seed=3, **layout):
        ids, positions = batch.input_ids, batch.position_ids
        if flatten:
            ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
        hidden_ND = module.hidden_at(ids, positions, batch.target_index)
        losses_N = lc.losses.get("forward_kl")(module.head.logits(hidden_ND), batch.targets)
        flat, at = batch.input_ids.view(-1), batch.position_ids.view(-1)
        for index, loss in zip(batch.target_index.tolist(), losses_N.tolist(), strict=True):
            offset = int(at[index])
            found[int(flat[index - offset]), offset] = loss
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager", BY_DOCUMENT])
@pytest.mark.parametrize("name", SHAPES)
def test_packed_and_unpacked_losses_agree(name: str, attention: str) -> None:
    torch.manual_seed(0)
    register()
    model = AutoModelForCausalLM.from_config(SHAPES[name], attn_implementation=attention).eval()
    cache = small_cache()
    module = StudentWithLoss(model, lc.losses.get("forward_kl"), 500)
    alone = token_losses(module, cache, batch_size=1)
    assert len(alone) == sum(shard.targets for shard in cache._shards)
    for case in (
        token_losses(module, cache, batch_size=4),
        token_losses(module, cache, batch_size=3, pack_tokens=40),
        # What flash attention is given: the rows of a batch end to end, told apart by their positions.
        token_losses(module, cache, batch_size=3, pack_tokens=40, flatten=True),
    ):
        assert case.keys() == alone.keys()
        assert max(abs(case[key] - alone[key]) for key in alone) < 1e-5


def test_the_comparison_notices_documents_that_see_each_other() -> None:
    """With plain counting positions in a packed row the losses must differ, or the test above proves nothing."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES["llama"]).eval()
    cache = small_cache()
    module = StudentWithLoss(model, lc.losses.get("forward_kl"), 500)
    hidden_at = module.hidden_at
    alone = token_losses(module, cache, batch_size=1)
    module.hidden_at = lambda ids, at, index: hidden_at(ids, torch.arange(ids.shape[1])[None].expand_as(ids), index)  # type: ignore[method-assign]
    leaking = token_losses(module, cache, batch_size=3, pack_tokens=40)
    assert max(abs(leaking[key] - alone[key]) for key in alone) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_models_that_keep_documents_apart_may_be_packed(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check_packing(AutoModelForCausalLM.from_config(SHAPES[name]).to(dtype))


LEAKING: dict[str, PretrainedConfig] = {
    "bloom": BloomConfig(vocab_size=500, hidden_size=32, n_layer=2, n_head=4),
    "falcon": FalconConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "mamba": MambaConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, state_size=4),
    "opt": OPTConfig(
        vocab_size=500, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, word_embed_proj_dim=32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", LEAKING)
def test_models_whose_documents_see_each_other_are_refused(name: str, dtype: torch.dtype) -> None:
    """They take position ids, and attend or carry a state across all the same."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LEAKING[name]).to(dtype)
    with pytest.raises(lc.LogitCacheError, match="lets the documents of a row see each other; train without it"):
        check_packing(model)


def test_a_batch_without_targets_costs_nothing_in_half_precision() -> None:
    """The sum of the head's weights is beyond what float16 holds."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES["llama"]).half()
    with torch.no_grad():
        model.lm_head.weight.fill_(8.0)
    module = StudentWithLoss(model, lc.losses.get("forward_kl"), 500)
    batch = next(iter(lc.stream(small_cache(), selection=Selection(min_confidence=1.0))))
    assert len(batch.labels) == 0
    loss, _ = module(batch)
    loss.backward()
    assert loss == 0
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())
