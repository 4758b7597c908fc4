"""An adapter's directory as the student: it is trained, and saved as an adapter again, or refused with the reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_tools import losses_of
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache.cache.reader import Cache
from logitcache.errors import ConfigError, ModelError
from logitcache.students.cut import make_student

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.integration

MODULES = ["q_proj", "v_proj", "down_proj"]
LAYERS = {"target_modules": MODULES, "task_type": "CAUSAL_LM"}
KINDS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, lora_alpha=12, lora_dropout=0.1, **LAYERS),
    "dora": peft.LoraConfig(r=4, use_dora=True, **LAYERS),
    "pissa": peft.LoraConfig(r=4, init_lora_weights="pissa", **LAYERS),
    "ranks that differ": peft.LoraConfig(r=4, rank_pattern={"v_proj": 2}, bias="all", **LAYERS),
    "layers repeated": peft.LoraConfig(r=4, layer_replication=[[0, 2], [1, 2]], **LAYERS),
    "embeddings and head": peft.LoraConfig(r=4, modules_to_save=["embed_tokens", "lm_head"], **LAYERS),
    "adapted head": peft.LoraConfig(r=4, target_modules=[*MODULES, "lm_head"], task_type="CAUSAL_LM"),
    "adapted embeddings": peft.LoraConfig(r=4, target_modules=[*MODULES, "embed_tokens"], task_type="CAUSAL_LM"),
    "tokens": peft.LoraConfig(r=4, trainable_token_indices=[1, 2, 3], **LAYERS),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "lokr": peft.LoKrConfig(r=4, **LAYERS),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "prefix": (peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), "virtual tokens"),
    "prompt": (peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), "virtual tokens"),
    "adalora": (peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, **LAYERS), "changes its ranks"),
    "alora": (peft.LoraConfig(r=4, alora_invocation_tokens=[5, 6], **LAYERS), "after certain tokens only"),
    "poly": (peft.PolyConfig(r=4, n_tasks=2, **LAYERS), "can't run on its base"),
}
SETTINGS: dict[str, Any] = {
    "loss": "forward_kl", "batch_size": 22, "learning_rate": 1e-2, "warmup": 0, "checkpoint_every": 0,
    "write_report": False,
}  # fmt: skip


def save_adapter(path: Path, base: Path, config: Any) -> Path:
    """An adapter with weights of its own, as PEFT saves it."""
    torch.manual_seed(3)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.03)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter") / "adapter", student_dir, KINDS["lora"])


@pytest.fixture
def settings(cache: Cache, adapter: Path, tmp_path: Path) -> dict[str, Any]:
    return {**SETTINGS, "cache": cache.root, "student": adapter, "out": tmp_path / "out", "max_steps": 2}


def edit(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@torch.no_grad()
def loss_by_peft(cache: Cache, base: Path, adapter: Path) -> float:
    """The mean loss of an adapter that PEFT itself has loaded."""
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    total, count = 0.0, 0
    for sequence in cache:
        logits_NV = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions]
        total += float(lc.losses.get("forward_kl")(logits_NV, sequence.targets).sum())
        count += len(sequence.targets)
    return total / count


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_trained_on_and_saved_as_one(
    cache: Cache, student_dir: Path, settings: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    config = KINDS[kind]
    given = save_adapter(tmp_path / "given", student_dir, config)
    shutil.rmtree(settings["out"], ignore_errors=True)
    before = loss_by_peft(cache, student_dir, given)
    result = lc.train(**{**settings, "student": given, "max_steps": 3, "eval_cache": cache.root})
    if not getattr(config, "lora_dropout", 0):
        assert losses_of(result)[0] == pytest.approx(before, abs=1e-5)
    assert result.before is not None
    assert result.after is not None
    assert result.after.kl < result.before.kl
    assert lc.evaluate(cache, given).kl == pytest.approx(result.before.kl, abs=1e-6)
    assert lc.evaluate(cache, settings["out"]).kl == pytest.approx(result.after.kl, abs=1e-6)
    assert not (settings["out"] / "model.safetensors").exists()
    own, saved = (json.loads((path / "adapter_config.json").read_text()) for path in (given, settings["out"]))
    for name in ("r", "lora_alpha", "rank_pattern", "modules_to_save", "peft_type"):
        assert own.get(name) == saved.get(name)
    assert sorted(own["target_modules"] or ()) == sorted(saved["target_modules"] or ())
    # PEFT alone finds base and weights.
    again = peft.AutoPeftModelForCausalLM.from_pretrained(settings["out"]).eval()
    assert loss_by_peft(cache, student_dir, settings["out"]) < before
    assert again.peft_config["default"].base_model_name_or_path == str(student_dir)


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_are_refused(student_dir: Path, settings: dict[str, Any], tmp_path: Path, kind: str) -> None:
    config, reason = REFUSED[kind]
    given = save_adapter(tmp_path / "given", student_dir, config)
    with pytest.raises(ModelError, match=reason) as error:
        lc.train(**{**settings, "student": given})
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ModelError, match=reason):
        lc.evaluate(settings["cache"], given)
    assert not settings["out"].exists()


def test_another_task_is_refused(adapter: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    given = shutil.copytree(adapter, tmp_path / "given")
    edit(given, task_type="SEQ_CLS")
    with pytest.raises(ModelError, match="trained for SEQ_CLS"):
        lc.train(**{**settings, "student": given})


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"lora_rank": 4}, ""),
        ({"lora_rank": 4, "lora_alpha": 12, "lora_targets": tuple(MODULES)}, ""),
        ({"lora_rank": 8}, "lora_rank = 8"),
        ({"lora_alpha": 3}, "lora_alpha = 3"),
        ({"lora_targets": ("q_proj",)}, "lora_targets"),
    ],
)
def test_settings_that_agree_with_the_adapter(settings: dict[str, Any], asked: dict[str, Any], refused: str) -> None:
    if refused:
        with pytest.raises(ConfigError, match=rf"{refused}.*is an adapter \(LORA\)"):
            lc.train(**settings, **asked)
        assert not settings["out"].exists()
    else:
        plain = lc.train(**{**settings, "out": settings["out"].parent / "plain"})
        assert losses_of(lc.train(**settings, **asked)) == losses_of(plain)


def test_a_second_run_continues_from_the_first(
    cache: Cache, student_dir: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    first = lc.train(**{**settings, "student": student_dir, "out": tmp_path / "first", "lora_rank": 4})
    assert first.steps == 2
    reached = loss_by_peft(cache, student_dir, tmp_path / "first")
    second = lc.train(**{**settings, "student": tmp_path / "first", "out": tmp_path / "second"})
    assert losses_of(second)[0] == pytest.approx(reached, abs=1e-5)


def test_a_run_is_resumed_with_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    run = {**settings, "batch_size": 4, "max_steps": 4, "checkpoint_every": 2}
    lc.train(**{**run, "out": tmp_path / "whole"})
    lc.train(**{**run, "out": tmp_path / "stopped"})
    for path in (*(tmp_path / "stopped").glob("adapter_*"), tmp_path / "stopped" / "checkpoints" / "checkpoint-4"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lc.train(**{**run, "out": tmp_path / "stopped", "resume": True})
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def remove(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def rename(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("self_attn", "attention")] = tensors.pop(name)


def reshape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:-1].clone()


def break_number(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name][0, 0] = torch.nan


@pytest.mark.parametrize("damage", [remove, rename, reshape, break_number])
def test_a_tensor_that_is_not_the_adapters_is_refused(
    adapter: Path, settings: dict[str, Any], tmp_path: Path, damage: Any
) -> None:
    given = shutil.copytree(adapter, tmp_path / "given")
    file = given / "adapter_model.safetensors"
    tensors = load_file(file)
    damage(tensors, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"the adapter .*q_proj.lora_B") as error:
        lc.train(**{**settings, "student": given})
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ModelError, match=r"the adapter .*q_proj.lora_B"):
        lc.evaluate(settings["cache"], given)


@pytest.mark.parametrize("same", [True, False])
def test_embeddings_saved_beside_an_adapter(
    adapter: Path, student_dir: Path, settings: dict[str, Any], tmp_path: Path, same: bool
) -> None:
    """They aren't trained, so they aren't saved again. They must equal the base's."""
    given = shutil.copytree(adapter, tmp_path / "given")
    file, name = given / "adapter_model.safetensors", "model.embed_tokens.weight"
    own = AutoModelForCausalLM.from_pretrained(student_dir).state_dict()[name]
    save_file(load_file(file) | {f"base_model.model.{name}": own + (0.0 if same else 0.1)}, file)
    if same:
        assert lc.train(**{**settings, "student": given}).steps == 2
    else:
        with pytest.raises(ModelError, match="other weights of its base"):
            lc.train(**{**settings, "student": given})


def test_the_base_is_found_by_its_name(
    adapter: Path, student_dir: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lc.evaluate(cache, adapter).kl
    given = shutil.copytree(adapter, tmp_path / "runs" / "given")
    shutil.copytree(student_dir, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    for name in ("../../base", "base", str(tmp_path / "base")):  # from the adapter, from here, from anywhere
        edit(given, base_model_name_or_path=name)
        assert lc.evaluate(cache, given).kl == expected
    shutil.copytree(student_dir, given / "base")
    edit(given, base_model_name_or_path="base")
    with pytest.raises(ModelError, match="could be"):
        lc.evaluate(cache, given)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/nowhere/base", "belongs to the base /nowhere/base, which does not exist"),
        (None, "names no base model"),
        ("nobody/nothing", "needs its base"),
        ("itself", "is an adapter itself"),
    ],
)
def test_a_base_that_is_not_there(
    adapter: Path, settings: dict[str, Any], tmp_path: Path, name: str | None, reason: str
) -> None:
    given = shutil.copytree(adapter, tmp_path / "given")
    edit(given, base_model_name_or_path=str(adapter) if name == "itself" else name)
    with pytest.raises(ModelError, match=reason) as error:
        lc.train(**{**settings, "student": given})
    assert len(str(error.value).splitlines()) == 1


def test_a_model_and_an_adapter_in_one_place_are_refused(
    adapter: Path, student_dir: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """transformers would load both without an error. The base's config.json alone isn't a model."""
    both = shutil.copytree(student_dir, tmp_path / "both")
    for path in adapter.glob("adapter_*"):
        shutil.copy(path, both)
    with pytest.raises(ModelError, match=r"holds a model \(model.safetensors\) and an adapter"):
        lc.train(**{**settings, "student": both})
    os.remove(both / "model.safetensors")
    assert lc.evaluate(settings["cache"], both).kl == lc.evaluate(settings["cache"], adapter).kl


def test_an_adapter_is_not_cut(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="merge it into its base"):
        make_student(adapter, tmp_path / "out", layers=1)
    assert not (tmp_path / "out").exists()
