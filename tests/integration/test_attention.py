"""Packed rows without a mask over the whole row: the same values and gradients, and which attention a run takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from memory_cache import MemoryCache
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, MistralConfig

import logitcache as lc
from logitcache.losses import StudentWithLoss
from logitcache.models import documents
from logitcache.models.documents import BY_DOCUMENT, attend, document_lengths, register
from logitcache.stream import Batch
from logitcache.train.attention import at_loading, choose_attention
from logitcache.train.config import TrainConfig

pytestmark = pytest.mark.integration
SHAPE: dict[str, Any] = {
    "vocab_size": 500, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def student(**settings: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), **settings)


def batches(**layout: Any) -> Iterator[Batch]:
    cache = MemoryCache.random(shards=3, largest=6, longest=15, seed=11, k=8, vocab_size=500, first_word=200)
    yield from lc.stream(cache, prefetch=0, **layout)


def train_config(**settings: Any) -> TrainConfig:
    return TrainConfig(cache="cache", student="student", out="out", **settings)


def losses_and_gradients(model: Any, **layout: Any) -> tuple[list[float], torch.Tensor]:
    module = StudentWithLoss(model, lc.losses.get("forward_kl"), 500)
    losses = []
    for batch in batches(**layout):
        loss, _ = module(batch)
        loss.backward()
        losses.append(float(loss.detach()))
    gradient = torch.cat([value.grad.flatten() for value in model.parameters()])
    model.zero_grad()
    return losses, gradient


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("pack_tokens", [40, None])
def test_attention_by_document_gives_the_same_losses_and_gradients(pack_tokens: int | None, window: int | None) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MistralConfig(**SHAPE, sliding_window=window)).double()
    losses, gradient = losses_and_gradients(model, batch_size=3, pack_tokens=pack_tokens)
    register()
    model.set_attn_implementation(BY_DOCUMENT)
    own_losses, own_gradient = losses_and_gradients(model, batch_size=3, pack_tokens=pack_tokens)
    assert own_losses == pytest.approx(losses, rel=1e-6)
    assert (own_gradient - gradient).abs().max() <= 1e-6 * gradient.abs().max()


class _Squares(TorchDispatchMode):
    """Whether any operation gives a tensor whose last two sizes are both those of a whole row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.met = width, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor) and tuple(value.shape[-2:]) == (self.width, self.width):
                self.met = True
        return out


@pytest.mark.parametrize(("attention", "square"), [("sdpa", True), ("eager", True), (BY_DOCUMENT, False)])
def test_only_attention_by_document_needs_no_mask_over_the_row(attention: str, square: bool) -> None:
    register()
    module = StudentWithLoss(student(attn_implementation=attention), lc.losses.get("forward_kl"), 500)
    batch = next(batches(batch_size=3, pack_tokens=40))
    assert batch.input_ids.shape[1] not in (32, 64)
    with _Squares(batch.input_ids.shape[1]) as squares:
        loss, _ = module(batch)
        loss.backward()
    assert squares.met is square


def test_documents_are_where_positions_begin_again() -> None:
    padded = False
    for layout in ({"batch_size": 3}, {"batch_size": 3, "pack_tokens": 40}, {"batch_size": 2, "pack_tokens": 17}):
        for batch in batches(**layout):
            assert batch.document_starts is not None
            told = batch.document_starts.tolist()
            found = [0]
            for length in document_lengths(None, batch.position_ids, *batch.input_ids.shape):
                found.append(found[-1] + length)
            # In the padding of a packed row each token is a document by its position; together they are told as one.
            width, tokens = batch.input_ids.shape[1], batch.input_ids.view(-1)
            merged = {at for at in found[:-1] if at % width and tokens[at] == 0 and tokens[at - 1] == 0}
            assert told == sorted(set(found) - merged)
            padded |= bool(merged)
            assert batch.longest_document == max(map(int, batch.document_starts.diff()))
    assert padded


def test_attention_by_document_drops_out_and_has_no_softcap() -> None:
    chance = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 6, 8, generator=chance) for _ in range(3))
    position_ids = torch.tensor([[0, 1, 2, 0, 0, 1], [0, 0, 0, 1, 2, 3]])
    module = torch.nn.Module()
    whole, _ = attend(module, query, key, value, None, position_ids=position_ids)
    alone, _ = attend(module, query[:1, :, :3], key[:1, :, :3], value[:1, :, :3], None)
    assert torch.equal(whole[:1, :3], alone)
    assert torch.equal(whole[0, 3], value[0, :, 3])
    dropped, _ = attend(module, query, key, value, None, dropout=0.9, position_ids=position_ids)
    assert not dropped[0, 3].all()
    with pytest.raises(NotImplementedError, match="no softcap"):
        attend(module, query, key, value, None, softcap=30.0)


@pytest.mark.parametrize("pack_tokens", [40, None])
def test_flash_attention_gets_one_row_and_is_told_where_documents_begin(pack_tokens: int | None) -> None:
    """Flash attention itself runs on GPUs only; under its name stands a function that takes what it takes."""
    met = []

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        met.append((len(query), others["cu_seq_lens_k"].tolist(), others["max_length_q"], others["max_length_k"]))
        return attend(module, query, key, value, mask, **{**others, "position_ids": None})

    AttentionInterface.register("flash_for_the_test", flash)
    model = student()
    expected, _ = losses_and_gradients(model, batch_size=3, pack_tokens=pack_tokens)
    module = StudentWithLoss(model, lc.losses.get("forward_kl"), 500)
    model.config._attn_implementation = "flash_for_the_test"  # after the head was found, where it can't run
    for batch, loss in zip(batches(batch_size=3, pack_tokens=pack_tokens), expected, strict=True):
        assert float(module(batch)[0].detach()) == pytest.approx(loss, rel=1e-5)
        assert batch.document_starts is not None
        longest = batch.longest_document
        assert met[-1] == (1, batch.document_starts.tolist(), longest, longest)
        assert type(met[-1][2]) is int


def test_packed_rows_on_a_cpu_take_attention_by_document() -> None:
    assert choose_attention(student(), train_config(pack_tokens=40), CPU) == BY_DOCUMENT
    assert choose_attention(student(), train_config(), CPU) == "sdpa"
    assert choose_attention(student(), train_config(pack_tokens=40), GPU) == "sdpa"
    asked = train_config(pack_tokens=40, attention="sdpa")
    assert at_loading(asked) == "sdpa"
    assert choose_attention(student(), asked, CPU) == "sdpa"


def test_a_student_whose_values_would_change_keeps_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked = student()
    chunked.config.attention_chunk_size = 8192
    assert choose_attention(chunked, train_config(pack_tokens=40), CPU) == "sdpa"
    monkeypatch.setattr(documents, "document_lengths", lambda starts, positions, rows, width: [width] * rows)
    model = student()
    assert choose_attention(model, train_config(pack_tokens=40), CPU) == "sdpa"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({"mixed_precision": "bf16"}, "flash_attention_2"),
        ({"dtype": "bf16", "mixed_precision": "no"}, "flash_attention_2"),
        ({"mixed_precision": "no"}, "sdpa"),
        ({"mixed_precision": "bf16", "attention": "sdpa"}, "sdpa"),
    ],
)
def test_a_gpu_takes_flash_attention_where_it_is_installed(
    settings: dict[str, Any], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = student()
    assert choose_attention(model, train_config(**settings), GPU) == "sdpa"
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    # transformers itself refuses it on a machine without a GPU.
    monkeypatch.setattr(
        type(model), "set_attn_implementation", lambda self, name: setattr(self.config, "_attn_implementation", name)
    )
    assert choose_attention(model, train_config(**settings), GPU) == taken


def test_flash_attention_that_is_not_there_is_refused_in_a_line() -> None:
    asked = train_config(attention="flash_attention_2")
    assert at_loading(asked) is None  # it can't run on the CPU, where the student is checked
    with pytest.raises(lc.LogitCacheError, match="attention = flash_attention_2 can't be used"):
        choose_attention(student(), asked, CPU)
