"""Models that don't predict each token from those before are refused when they are loaded, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dump_tools import TINY
from tiny_models import save_tiny, spread
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    CpmAntConfig,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PretrainedConfig,
    ReformerConfig,
    XLMConfig,
)

import logitcache as lc
from logitcache.cache.reader import Cache
from logitcache.errors import ModelError
from logitcache.models import check_language_model

pytestmark = pytest.mark.integration

WORDS: dict[str, Any] = {"vocab_size": 600, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
SIZES: dict[str, Any] = {
    **WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
NOT_CAUSAL: dict[str, tuple[PretrainedConfig, str]] = {
    "gemma3": (
        Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=16, use_bidirectional_attention=True),
        "is not causal: .*use_bidirectional_attention is set in its config.json",
    ),
    "bert": (BertConfig(**SIZES), "is not causal: .*is_decoder is false in its config.json"),
    "xlm": (XLMConfig(n_words=600, emb_dim=32, n_layers=2, n_heads=2, pad_index=2), "is not causal: another token"),
    "cpmant": (
        CpmAntConfig(vocab_size=588, prompt_types=3, prompt_length=4, hidden_size=32, num_attention_heads=2,
                     dim_head=16, dim_ff=64, num_hidden_layers=2),
        "is not causal: another token",
    ),
}  # fmt: skip


@pytest.fixture
def text(tmp_path: Path, heldout_text: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(heldout_text.read_text(encoding="utf-8")[:600], encoding="utf-8")
    return path


def refused(match: str, teacher: Path, data: Path, out: Path) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        lc.dump(teacher=str(teacher), data=[str(data)], out=out, **TINY)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(lc.LogitCacheError):
        lc.open(out)


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_a_teacher_that_looks_ahead_is_refused(name: str, teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    config, match = NOT_CAUSAL[name]
    refused(match, save_tiny(tmp_path / name, teacher_dir, config), text, tmp_path / "out")


def test_a_student_that_looks_ahead_is_refused(cache: Cache, teacher_dir: Path, tmp_path: Path) -> None:
    config, match = NOT_CAUSAL["gemma3"]
    student = save_tiny(tmp_path / "student", teacher_dir, config)
    with pytest.raises(ModelError, match=match):
        lc.train(cache=cache.root, student=student, out=tmp_path / "out", max_steps=1)
    with pytest.raises(ModelError, match=match):
        lc.evaluate(cache, student)


def test_a_reformer_that_is_no_decoder_is_refused(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    config = ReformerConfig(is_decoder=True, **WORDS)
    place = save_tiny(tmp_path / "reformer", teacher_dir, config)
    settings = (place / "config.json").read_text().replace('"is_decoder": true', '"is_decoder": false')
    (place / "config.json").write_text(settings)
    refused("is_decoder", place, text, tmp_path / "out")


def test_an_encoder_decoder_is_refused(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=600, **sizes, **heads)
    place = save_tiny(tmp_path / "bart", teacher_dir, config, AutoModelForSeq2SeqLM)
    refused("is an encoder-decoder model", place, text, tmp_path / "out")


def llama() -> Any:
    torch.manual_seed(0)
    return spread(LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)))


def mixtral() -> Any:
    torch.manual_seed(0)
    return spread(MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=4)))


def mamba() -> Any:
    """Its body gives float32 in any precision."""
    torch.manual_seed(0)
    return spread(MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [llama, mixtral, mamba])
def test_causal_models_pass_in_any_precision(make: Any, dtype: torch.dtype) -> None:
    head = check_language_model(make().to(dtype), "teacher", "x")
    assert not head.whole
    assert not head.alone


def test_fewer_positions_than_the_probe_has() -> None:
    config = LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=4)
    check_language_model(spread(LlamaForCausalLM(config)), "teacher", "x")


def test_a_model_of_broken_numbers_is_left_to_the_report_by_position() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    check_language_model(model, "teacher", "x")


def test_noise_is_refused() -> None:
    model = llama()
    model.model.layers[1].register_forward_hook(lambda module, args, out: out + torch.randn_like(out))
    with pytest.raises(ModelError, match="gives other values for the same tokens"):
        check_language_model(model, "teacher", "x")


def test_a_faint_look_ahead_is_noticed() -> None:
    """A thousandth of the next token's state is far less than any attention would give, and far more than rounding."""
    model = llama()
    model.model.layers[0].register_forward_hook(lambda module, args, out: out + 1e-2 * out.roll(-1, 1))
    with pytest.raises(ModelError, match="is not causal"):
        check_language_model(model, "teacher", "x")


def test_rows_that_change_each_other_run_alone() -> None:
    """As where an expert takes so many tokens of a batch and no more."""
    model, ids = llama(), torch.randint(1, 600, (3, 9))
    model.model.layers[0].register_forward_hook(lambda module, args, out: out + out.mean(0, keepdim=True))
    head = check_language_model(model, "teacher", "x")
    assert head.alone
    with torch.no_grad():
        own = torch.cat([model(input_ids=row[None]).logits for row in ids])
        assert torch.allclose(head.logits(head.hidden(ids)), own, atol=1e-5)
        assert not torch.allclose(model(input_ids=ids).logits, own, atol=1e-2)
