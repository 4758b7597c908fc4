"""A checkpoint is loaded whole or not at all: plain, in shards, quantised, and as a GGUF file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dump_tools import TINY, check_every_row
from tiny_models import change_weights, quantise, save_tiny, shard, write_gguf
from transformers import MixtralConfig

import logitcache as lc
from logitcache.cache.reader import Cache
from logitcache.errors import LogitCacheWarning, ModelError

pytestmark = pytest.mark.integration

DOWN = "model.layers.1.mlp.down_proj.weight"
RENAMED = "model.layers.1.mlp.downproj.weight"
CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "removed": lambda weights: weights.pop(DOWN),
    "renamed": lambda weights: weights.update({RENAMED: weights.pop(DOWN)}),
    "of another shape": lambda weights: weights.update({DOWN: weights[DOWN][:, :32].clone()}),
}
SAID = {
    "removed": rf"lack weights of the model: {DOWN}",
    "renamed": rf"lack weights of the model: {DOWN}",
    "of another shape": rf"{DOWN} is \[32, 32\] and not \[32, 64\]",
}
FORMS: dict[str, Callable[[Path], None]] = {"plain": lambda place: None, "sharded": shard, "quantised": quantise}


def dump(teacher: Path, data: Path, out: Path) -> Cache:
    return lc.dump(teacher=str(teacher), data=[str(data)], out=out, **TINY)


def form_of(place: Path, form: str, source: Path) -> Path:
    shutil.copytree(source, place)
    FORMS[form](place)
    return place


def refused(match: str, teacher: Path, data: Path, out: Path) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        dump(teacher, data, out)
    assert len(str(caught.value).splitlines()) <= 2
    with pytest.raises(lc.LogitCacheError):
        lc.open(out)


@pytest.fixture
def text(tmp_path: Path, heldout_text: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(heldout_text.read_text(encoding="utf-8")[:600], encoding="utf-8")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_checkpoint_is_dumped(form: str, teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    place = form_of(tmp_path / "teacher", form, teacher_dir)
    check_every_row(dump(place, text, tmp_path / "out"), place, noise=1e-3)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_with_a_damaged_weight_is_refused(
    form: str, change: str, teacher_dir: Path, text: Path, tmp_path: Path
) -> None:
    place = form_of(tmp_path / "teacher", form, teacher_dir)
    change_weights(place, CHANGES[change], holding=DOWN)
    refused(SAID[change], place, text, tmp_path / "out")


def test_a_gguf_file_is_dumped(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    cache = dump(write_gguf(teacher_dir, tmp_path / "teacher.gguf"), text, tmp_path / "out")
    check_every_row(cache, teacher_dir, noise=1e-3)


@pytest.mark.parametrize("change", CHANGES)
def test_a_gguf_file_with_a_damaged_weight_is_refused(
    change: str, teacher_dir: Path, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    place = write_gguf(teacher_dir, tmp_path / "teacher.gguf", CHANGES[change])
    refused(SAID[change], place, text, tmp_path / "out")


def test_a_gguf_bias_without_a_place_is_refused(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    bias = {"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}
    place = write_gguf(teacher_dir, tmp_path / "teacher.gguf", lambda weights: weights.update(bias))
    refused("holds 1 biases", place, text, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(f"{DOWN}_scale_inv"),
        lambda weights: weights.update({f"{DOWN}_scale": weights.pop(f"{DOWN}_scale_inv")}),
        lambda weights: weights.update({f"{DOWN}_scale_inv": weights[f"{DOWN}_scale_inv"][:1].clone()}),
    ],
    ids=CHANGES,
)
def test_a_quantised_weight_with_a_damaged_scale_is_refused(
    change: Any, teacher_dir: Path, text: Path, tmp_path: Path
) -> None:
    place = form_of(tmp_path / "teacher", "quantised", teacher_dir)
    change_weights(place, change)
    refused(f"{DOWN}_scale", place, text, tmp_path / "out")


def configured(place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = place / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def test_quantised_weights_under_a_plain_configuration_are_refused(
    teacher_dir: Path, text: Path, tmp_path: Path
) -> None:
    place = form_of(tmp_path / "teacher", "quantised", teacher_dir)
    configured(place, lambda config: config.pop("quantization_config"))
    refused("weight is F8_E4M3 .* no quantization_config", place, text, tmp_path / "out")


def test_integers_as_weights_are_refused(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    place = form_of(tmp_path / "teacher", "plain", teacher_dir)
    change_weights(place, lambda weights: weights.update({DOWN: weights[DOWN].to(torch.int8)}))
    refused(f"{DOWN} is I8", place, text, tmp_path / "out")


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_more_layers_in_the_files_than_in_the_configuration(
    form: str, layers: int, teacher_dir: Path, text: Path, tmp_path: Path
) -> None:
    place = form_of(tmp_path / "teacher", form, teacher_dir)
    configured(place, lambda config: config.update(num_hidden_layers=layers))
    refused(rf"more layers than config.json says \(model.layers.{layers}", place, text, tmp_path / "out")


def test_a_further_layer_of_another_kind_is_named(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    """Layers that predict several tokens ahead lie in the same list, with tensors of their own."""
    place = form_of(tmp_path / "teacher", "plain", teacher_dir)

    def ahead(weights: dict[str, torch.Tensor]) -> None:
        layer = {name.replace(".1.", ".2."): value.clone() for name, value in weights.items() if ".layers.1." in name}
        weights.update(layer | {"model.layers.2.eh_proj.weight": torch.ones(32, 64)})

    change_weights(place, ahead)
    with pytest.warns(LogitCacheWarning, match=r"left unread: model.layers.2 \(10\)"):
        check_every_row(dump(place, text, tmp_path / "out"), place, noise=1e-3)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda raw: raw[: len(raw) // 2], r"model\S*.safetensors is cut"),
        (lambda raw: b"", r"model\S*.safetensors is cut"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
    ids=["half", "empty", "pointer"],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_not_whole_is_named(
    form: str, spoil: Callable[[bytes], bytes], match: str, teacher_dir: Path, text: Path, tmp_path: Path
) -> None:
    place = form_of(tmp_path / "teacher", form, teacher_dir)
    path = sorted(place.glob("*.safetensors"))[-1]
    path.write_bytes(spoil(path.read_bytes()))
    refused(match, place, text, tmp_path / "out")


def test_what_a_configuration_gets_wrong_is_said(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    place = form_of(tmp_path / "teacher", "plain", teacher_dir)
    configured(place, lambda config: config.update(vocab_size="many"))
    refused("vocab_size.* int", place, text, tmp_path / "out")


_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_with_code_of_its_own(cache: Cache, teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    """Refused unasked, by every command; asked for, it is checked as any other."""
    place = form_of(tmp_path / "teacher", "plain", teacher_dir)
    (place / "modeling_own.py").write_text(_CODE, encoding="utf-8")
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    configured(place, lambda config: config.update(model_type="own_llama", auto_map=classes))
    refused("code of its own .* --trust-remote-code", place, text, tmp_path / "out")
    with pytest.raises(ModelError, match=r"student .* code of its own"):
        lc.evaluate(cache, place)
    settings: dict[str, Any] = {"teacher": str(place), "data": [str(text)], "trust_remote_code": True, **TINY}
    check_every_row(lc.dump(out=tmp_path / "out", **settings), teacher_dir, noise=1e-3)
    change_weights(place, CHANGES["removed"])
    with pytest.raises(ModelError, match=SAID["removed"]):
        lc.dump(out=tmp_path / "other", **settings)


@pytest.mark.parametrize("change", CHANGES)
def test_a_student_with_a_damaged_weight_is_refused(
    change: str, cache: Cache, student_dir: Path, tmp_path: Path
) -> None:
    place = form_of(tmp_path / "student", "plain", student_dir)
    change_weights(place, CHANGES[change])
    with pytest.raises(ModelError, match=SAID[change]):
        lc.train(cache=cache.root, student=place, out=tmp_path / "out", max_steps=1)
    with pytest.raises(ModelError, match=SAID[change]):
        lc.evaluate(cache, place)
    assert not (tmp_path / "out").exists()


def test_a_bias_that_the_configuration_denies_is_refused(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    place = form_of(tmp_path / "teacher", "plain", teacher_dir)
    change_weights(place, lambda weights: weights.update({DOWN.replace("weight", "bias"): torch.ones(32)}))
    refused("down_proj.bias, and config.json says that there is none", place, text, tmp_path / "out")


def test_tensors_without_a_place_are_named(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    """Layers that predict several tokens ahead are often left out of a model's class."""
    place = form_of(tmp_path / "teacher", "plain", teacher_dir)
    more = {"model.layers.2.mlp.up_proj.weight": torch.ones(2), "model.layers.2.norm.weight": torch.ones(2)}
    change_weights(place, lambda weights: weights.update(more))
    with pytest.warns(LogitCacheWarning, match=r"2 tensors .* left unread: model\.layers\.2 \(2\)"):
        check_every_row(dump(place, text, tmp_path / "out"), teacher_dir, noise=1e-3)


def test_an_expert_that_is_missing_is_refused(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    """Experts are joined while they are loaded, so the file's names are not the model's."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=2, vocab_size=600)
    place = save_tiny(tmp_path / "teacher", teacher_dir, config)
    change_weights(place, lambda weights: weights.pop("model.layers.1.block_sparse_moe.experts.1.w2.weight"))
    refused("model.layers.1.mlp.experts.down_proj", place, text, tmp_path / "out")
