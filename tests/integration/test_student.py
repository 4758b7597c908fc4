"""Students cut from bigger models have the right layers, load and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from make_caches import TEXT, cache_of_model, save_tokenizer, text_sequences
from tiny_models import save_tiny, write_gguf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3nTextConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    PretrainedConfig,
    Qwen2Config,
)
from typer.testing import CliRunner

from logitcache.cli.main import app
from logitcache.errors import ModelError
from logitcache.students.cut import even_layers, find_layers, make_student, most_influential

pytestmark = pytest.mark.integration
SHAPE: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
SHAPES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=True, max_window_layers=3, sliding_window=8),
    "gemma2": Gemma2Config(**SHAPE, head_dim=16, sliding_window=8),
    "gpt2": GPT2Config(vocab_size=600, n_positions=64, n_embd=32, n_layer=6, n_head=2),
}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer", TEXT)


def save_model(name: str, path: Path, tokenizer_dir: Path) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES[name]).eval()
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(path)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_the_student_is_the_teacher_without_the_other_layers(name: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    teacher = save_model(name, tmp_path / "teacher", tokenizer_dir)
    kept = make_student(tmp_path / "teacher", tmp_path / "student", layers=[0, 3, 5])
    assert kept == (0, 3, 5)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    assert student.config.num_hidden_layers == 3
    own, theirs = find_layers(student), find_layers(teacher)
    for layer, index in zip(own, kept, strict=True):
        expected = theirs[index].state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in layer.state_dict().items())
    if getattr(teacher.config, "layer_types", None):
        assert student.config.layer_types == [teacher.config.layer_types[index] for index in kept]
    ids = torch.arange(1, 25)[None]
    # Cached generation and the plain pass agree only if the layers know their new numbers.
    plain = student(input_ids=ids).logits[0, -1]
    past = student(input_ids=ids[:, :-1], use_cache=True).past_key_values
    stepped = student(input_ids=ids[:, -1:], past_key_values=past, use_cache=True).logits[0, -1]
    assert torch.allclose(plain, stepped, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tmp_path / "teacher").get_vocab()


def test_all_layers_give_the_same_model(tokenizer_dir: Path, tmp_path: Path) -> None:
    teacher = save_model("llama", tmp_path / "teacher", tokenizer_dir)
    make_student(tmp_path / "teacher", tmp_path / "student", layers=6)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    expected = teacher.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())


def test_even_layers() -> None:
    assert even_layers(30, 10) == (0, 3, 6, 10, 13, 16, 19, 23, 26, 29)
    assert even_layers(6, 6) == (0, 1, 2, 3, 4, 5)
    assert even_layers(6, 2) == (0, 5)
    assert even_layers(6, 1) == (0,)
    for total in range(1, 40):
        for keep in range(1, total + 1):
            assert len(set(even_layers(total, keep))) == keep


def test_most_influential_keeps_both_ends() -> None:
    assert most_influential([0.1, 0.5, 0.2, 0.9, 0.3, 0.0], 4) == (0, 1, 3, 5)
    assert most_influential([0.1, 0.5, 0.2], 1) == (0,)


def test_measured_importance_finds_a_layer_that_does_nothing(tokenizer_dir: Path, tmp_path: Path) -> None:
    teacher = save_model("llama", tmp_path / "teacher", tokenizer_dir)
    cache = cache_of_model(tmp_path / "cache", teacher, text_sequences(tokenizer_dir, TEXT, 24, 4), tokenizer_dir, k=8)
    with torch.no_grad():  # layers 2 and 3 add nothing to the residual stream
        for index in (2, 3):
            layer = find_layers(teacher)[index]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    teacher.save_pretrained(tmp_path / "teacher")
    kept = make_student(tmp_path / "teacher", tmp_path / "student", layers=4, importance_cache=cache.root)
    assert kept == (0, 1, 4, 5)


def test_student_command(tokenizer_dir: Path, tmp_path: Path) -> None:
    save_model("llama", tmp_path / "teacher", tokenizer_dir)
    arguments = ["student", "--teacher", str(tmp_path / "teacher"), "--layers", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["layers"] == [0, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "teacher"]


@torch.no_grad()
def test_the_text_layers_of_an_image_text_model_are_cut(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Its vision encoder has the same number of layers, and keeps them."""
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(vision_config=tower, text_config=LlamaConfig(**SHAPE), image_token_index=599)
    save_tiny(tmp_path / "teacher", tokenizer_dir, config, AutoModelForImageTextToText)
    assert make_student(tmp_path / "teacher", tmp_path / "student", layers=[0, 3, 5]) == (0, 3, 5)
    teacher, student = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name).eval() for name in ("teacher", "student")
    )
    assert student.config.text_config.num_hidden_layers == 3
    assert student.config.vision_config.num_hidden_layers == 6
    own = teacher.model.language_model.layers
    del own[4], own[2], own[1]
    ids = torch.arange(1, 25)[None]
    assert torch.equal(student(input_ids=ids).logits, teacher(input_ids=ids, use_cache=False).logits)


@torch.no_grad()
def test_a_gguf_file_is_cut(tokenizer_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    gguf = write_gguf(save_tiny(tmp_path / "teacher", tokenizer_dir, config), tmp_path / "teacher.gguf")
    arguments = ["student", "--teacher", str(gguf), "--layers", "0,5", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert make_student(tmp_path / "teacher", tmp_path / "expected", layers=[0, 5]) == (0, 5)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("out", "expected"))
    ids = torch.arange(1, 25)[None]
    assert torch.allclose(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-4)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "expected")]
    assert tokenizers[0]("The state of the union").input_ids == tokenizers[1]("The state of the union").input_ids


DEPENDENT: dict[str, tuple[PretrainedConfig, list[int], list[int]]] = {
    # The last layers take keys and values from one that may be gone; embeddings hold a part for each layer.
    "gemma3n": (
        Gemma3nTextConfig(
            **SHAPE, head_dim=16, num_kv_shared_layers=2, vocab_size_per_layer_input=600, laurel_rank=4,
            hidden_size_per_layer_input=8, activation_sparsity_pattern=[0.0] * 6,
            layer_types=["sliding_attention", "full_attention"] * 3,
        ),
        [0, 1, 5],
        [0, 1, 2, 3, 4, 5],
    ),
    # A layer's index decides whether it has experts.
    "deepseek": (
        DeepseekV3Config(
            **{**SHAPE, "num_key_value_heads": 2}, moe_intermediate_size=16, n_routed_experts=4, n_group=1,
            topk_group=1, num_experts_per_tok=2, first_k_dense_replace=2, q_lora_rank=8, kv_lora_rank=8,
            qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8,
        ),
        [0, 2, 5],
        [0, 1, 5],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPENDENT)
def test_layers_that_need_others_are_cut_right_or_not_at_all(name: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    config, refused, taken = DEPENDENT[name]
    save_tiny(tmp_path / "teacher", tokenizer_dir, config)
    with pytest.raises(ModelError, match="can't be cut to these layers") as error:
        make_student(tmp_path / "teacher", tmp_path / "refused", layers=refused)
    assert len(str(error.value).splitlines()) == 1
    assert str(tmp_path) not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    assert make_student(tmp_path / "teacher", tmp_path / "taken", layers=taken) == tuple(taken)


def test_a_list_of_token_ids_is_not_taken_for_layers(tokenizer_dir: Path, tmp_path: Path) -> None:
    config = LlamaConfig(**{**SHAPE, "num_hidden_layers": 3}, eos_token_id=[1, 2, 3])
    save_tiny(tmp_path / "teacher", tokenizer_dir, config)
    make_student(tmp_path / "teacher", tmp_path / "student", layers=[0, 2])
    assert AutoConfig.from_pretrained(tmp_path / "student").eos_token_id == [1, 2, 3]


def test_a_teacher_without_a_tokenizer_is_not_cut(tokenizer_dir: Path, tmp_path: Path) -> None:
    save_model("llama", tmp_path / "teacher", tokenizer_dir)
    for path in (tmp_path / "teacher").glob("token*"):
        path.unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        make_student(tmp_path / "teacher", tmp_path / "student", layers=2)
    assert not (tmp_path / "student").exists()
