"""Heads that are no plain last layer, and text paths within larger models, as teachers and as students."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from dump_tools import TINY
from make_caches import TEXT, save_tokenizer
from tiny_models import save_tiny
from train_tools import losses_of

import logitcache as lc
from benchmarks._architectures_configs import tiny_config
from logitcache.cache.reader import Cache
from logitcache.errors import LogitCacheWarning
from logitcache.models import find_head, load_language_model

pytestmark = pytest.mark.integration

CAUSAL, IMAGE_TEXT = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
# What is special about each, and what else its configuration needs.
ARCHITECTURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "modernbert-decoder": (CAUSAL, {}),  # a layer and a norm before the output layer, under a name of its own
    "bert": (CAUSAL, {"is_decoder": True}),  # the output layer within two modules
    "rembert": (CAUSAL, {"is_decoder": True}),
    "roberta": (CAUSAL, {"is_decoder": True}),  # counts positions from 2
    "inkling_text": (CAUSAL, {}),  # hidden states are divided by a setting, and logits of padding dropped
    "llama4": (IMAGE_TEXT, {}),  # the prefix names another module
    "llama4_text": (CAUSAL, {}),
    "mllama": (IMAGE_TEXT, {}),
    "chameleon": (IMAGE_TEXT, {}),  # rules out words of its own: only the model itself gives its logits
    "mistral3": (IMAGE_TEXT, {}),
    "qwen2_vl": (IMAGE_TEXT, {}),
    "gemma3": (IMAGE_TEXT, {}),  # asks for more inputs while it is trained
}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEXT, words=420)


def save(name: str, place: Path, tokenizer_dir: Path) -> tuple[Path, Any]:
    """A tiny model's directory, and the model as its own class loads it."""
    automatic, settings = ARCHITECTURES[name]
    config = tiny_config(name)
    for setting, value in settings.items():
        setattr(config, setting, value)
    save_tiny(place, tokenizer_dir, config, automatic)
    return place, automatic.from_pretrained(place).eval()


@torch.no_grad()
def logits_of(model: Any, sequence: Any) -> torch.Tensor:
    """``[M, V]``, from the sequence alone and the model itself."""
    logits: torch.Tensor = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions].float()
    return logits


def check_rows(cache: Cache, model: Any) -> None:
    assert len({len(sequence) for sequence in cache}) > 1  # unequal rows, so that batches were padded
    for sequence in cache:
        own, stored = logits_of(model, sequence).log_softmax(1), sequence.targets
        assert (own.gather(1, stored.ids) - stored.logprobs).abs().max() <= 5e-4
        outside = own.scatter(1, stored.ids, -torch.inf).logsumexp(1)
        assert (outside - stored.residual_logprob).abs().max() <= 5e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_teacher_and_student(name: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.txt"
    data.write_text(TEXT.read_text(encoding="utf-8")[:1200], encoding="utf-8")
    place, model = save(name, tmp_path / "model", tokenizer_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogitCacheWarning)  # on what a model costs that can't be taken apart
        cache = lc.dump(teacher=str(place), data=[str(data)], out=tmp_path / "cache", **TINY | {"preset": "exact"})
        check_rows(cache, model)
        # The teacher itself as the student, with other targets than its own, so that the loss isn't nothing.
        loss = lc.losses.get("cross_entropy")
        result = lc.train(
            cache=cache.root, student=place, out=tmp_path / "out", loss="cross_entropy", batch_size=len(cache),
            max_steps=1, learning_rate=1e-6, write_report=False,
        )  # fmt: skip
        rows = [(logits_of(model, sequence), sequence.targets, sequence.labels) for sequence in cache]
        each = torch.cat([loss(logits, targets, labels) for logits, targets, labels in rows])
        assert losses_of(result)[0] == pytest.approx(float(each.mean()), abs=2e-4)
        again = load_language_model("student", "out", tmp_path / "out")
        assert type(again) is type(model)
        measured = lc.evaluate(cache, place)
    assert measured.kl == pytest.approx(0, abs=2e-4)
    assert measured.cross_entropy == pytest.approx(float(each.mean()), abs=2e-4)


def test_what_text_does_not_reach_is_not_trained(tokenizer_dir: Path, tmp_path: Path) -> None:
    _, model = save("mistral3", tmp_path / "model", tokenizer_dir)
    lc.losses.loss_model(model)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained
    assert all("language_model" in name or "lm_head" in name for name in trained)


def test_long_rows_do_not_change_the_short_ones_beside_them(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Phi-3's rotary frequencies are those of long texts if any row of the batch is long."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)]}
    config = transformers.Phi3Config(
        **sizes, vocab_size=420, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, max_position_embeddings=256, original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **factors},
    )  # fmt: skip
    place = save_tiny(tmp_path / "model", tokenizer_dir, config)
    data = tmp_path / "rows.jsonl"
    text = TEXT.read_text(encoding="utf-8")
    data.write_text("".join(json.dumps({"text": text[:length]}) + "\n" for length in (40, 200, 60, 180)))
    cache = lc.dump(teacher=str(place), data=[str(data)], out=tmp_path / "cache", **TINY | {"preset": "exact"})
    check_rows(cache, CAUSAL.from_pretrained(place).eval())


def test_settings_of_the_scale_are_taken_from_the_configuration(tokenizer_dir: Path, tmp_path: Path) -> None:
    _, model = save("inkling_text", tmp_path / "model", tokenizer_dir)
    head = find_head(model)
    assert not head.why_dense
    assert head.finish.logit_scale in {1 / value for value in _numbers(model.config)}


def _numbers(config: Any) -> set[float]:
    return {value for value in vars(config).values() if isinstance(value, (int, float)) and value}
