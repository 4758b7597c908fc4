"""Body plus fused head equals the model's own logits plus the dense loss, for common architectures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import logitcache as lc
from logitcache import losses
from logitcache.stream import Batch

SMALL: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD_DIM = {"head_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", HEAD_DIM),
    "gemma2": ("gemma2", {**HEAD_DIM, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**HEAD_DIM, "final_logit_softcapping": 3.0}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere2": ("cohere2", {"logit_scale": 0.25}),
    "granite": ("granite", {"logits_scaling": 6.0}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("gpt_neox", {}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "mistral": ("mistral", HEAD_DIM),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
}


def tiny(name: str, tied: bool) -> Any:
    model_type, extra = MODELS[name]
    torch.manual_seed(7)
    config = AutoConfig.for_model(model_type, **{**SMALL, **extra, "tie_word_embeddings": tied})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # random initial weights make nearly uniform logits, which any scale would fit
        for parameter in model.get_output_embeddings().parameters():
            parameter.normal_(std=0.7)
    return model


def batch() -> tuple[Batch, torch.Tensor]:
    """A batch, and its attention mask."""
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(3, 131, (2, 9), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 6:] = 0
    index = torch.tensor([1, 2, 5, 7, 9, 11, 13])
    targets = lc.TopK.from_logits(torch.randn(len(index), 131, generator=generator) * 3, 16)
    labels = torch.tensor([4, 5, -100, 9, 11, 130, 3])
    return Batch(input_ids, torch.arange(9).expand(2, -1), index, targets, labels), attention_mask


def logits_at(model: Any, inputs: Batch, mask: torch.Tensor) -> torch.Tensor:
    """The model's own logits at the positions that have targets."""
    logits: torch.Tensor = model(input_ids=inputs.input_ids, attention_mask=mask).logits
    return logits.flatten(0, 1)[inputs.target_index]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_models_own_logits(name: str, tied: bool) -> None:
    model, (inputs, mask) = tiny(name, tied), batch()
    student = losses.loss_model(model)
    assert student.fused, student.why_dense
    for spec in ("bild", "cross_entropy", "bild=1,residual_kl=0.5"):
        loss = losses.parse(spec)
        model.zero_grad()
        student.loss = loss
        fused, _ = student(inputs, attention_mask=mask)
        fused.backward()
        gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}

        model.zero_grad()
        rows = logits_at(model, inputs, mask)
        keep = inputs.labels != -100
        dense = loss(rows[keep], inputs.targets[keep], inputs.labels[keep]).mean()
        dense.backward()

        torch.testing.assert_close(fused, dense, rtol=1e-5, atol=1e-6)
        for key, value in model.named_parameters():
            if value.grad is not None:
                difference = (gradients[key] - value.grad).abs().max()
                # In float32 the rounding of the two ways differs, and two layers of backward pass amplify it.
                assert difference <= 2e-5 * value.grad.abs().max() + 1e-7, f"{spec} {key} {difference}"


def test_reading_a_model_leaves_each_module_in_its_mode() -> None:
    model = tiny("llama", tied=True).train()
    model.model.layers[0].eval()  # as one does with layers that are frozen
    before = [module.training for module in model.modules()]
    losses.loss_model(model)
    assert [module.training for module in model.modules()] == before


def test_a_head_that_is_not_linear_falls_back_to_dense_and_says_why() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden) * 2

    model, (inputs, mask) = tiny("llama", tied=False), batch()
    doubled = Doubled(32, 131, bias=False)
    doubled.weight = model.lm_head.weight
    model.lm_head = doubled
    student = losses.loss_model(model)
    assert not student.fused
    assert "Doubled" in student.why_dense
    loss, stats = student(inputs, attention_mask=mask)
    loss.backward()
    keep = inputs.labels != -100
    expected = losses.get("bild")(logits_at(model, inputs, mask)[keep], inputs.targets[keep]).mean()
    torch.testing.assert_close(loss, expected)
    assert stats.tokens == 6
    with pytest.raises(lc.LogitCacheError, match="Doubled"):
        _ = student.head.weight


def test_a_head_whose_forward_was_replaced_falls_back_to_dense() -> None:
    model, (inputs, mask) = tiny("llama", tied=False), batch()
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: forward(hidden).sin()
    student = losses.loss_model(model, "forward_kl")
    assert not student.fused
    keep = inputs.labels != -100
    expected = losses.get("forward_kl")(logits_at(model, inputs, mask)[keep], inputs.targets[keep]).mean()
    torch.testing.assert_close(student(inputs, attention_mask=mask)[0], expected)


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A Granite whose logits go through one more function."""
    model = tiny("granite", tied=True)
    forward = model.forward

    def after(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = change(output.logits)
        return output

    model.forward = after
    return model


def test_a_change_of_the_logits_that_nothing_explains_falls_back_to_dense() -> None:
    student, (inputs, mask) = losses.loss_model(changed(torch.sin), "forward_kl"), batch()
    assert not student.fused
    assert "Granite" in student.why_dense
    loss, _ = student(inputs, attention_mask=mask)
    rows, keep = logits_at(student.student, inputs, mask), inputs.labels != -100
    torch.testing.assert_close(loss, losses.get("forward_kl")(rows[keep], inputs.targets[keep]).mean())


def test_a_factor_that_the_configuration_does_not_name_is_measured() -> None:
    student = losses.loss_model(changed(lambda logits: logits * 1.37))
    assert student.fused, student.why_dense
    assert student.head.finish.logit_scale == pytest.approx(1.37 / 6.0, rel=1e-5)


def test_lora_keeps_the_fused_head_and_its_gradients() -> None:
    peft = pytest.importorskip("peft")
    inputs, mask = batch()
    model = peft.get_peft_model(
        tiny("llama", tied=False), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    student = losses.loss_model(model)
    assert student.fused, student.why_dense
    assert not student.head.weight.requires_grad
    loss, _ = student(inputs, attention_mask=mask)
    loss.backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    assert gradients
    assert all("lora" in key for key in gradients)
    model.zero_grad()
    keep = inputs.labels != -100
    dense = losses.get("bild")(logits_at(model, inputs, mask)[keep], inputs.targets[keep]).mean()
    dense.backward()
    torch.testing.assert_close(loss, dense)
    for key, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(gradients[key], value.grad, rtol=1e-4, atol=1e-6)


def test_lora_on_the_head_itself_falls_back_to_dense() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("llama", tied=False), peft.LoraConfig(r=4, target_modules=["lm_head"]))
    student = losses.loss_model(model)
    assert not student.fused
    assert "not a plain linear layer" in student.why_dense
    inputs, mask = batch()
    loss, _ = student(inputs, attention_mask=mask)
    loss.backward()
    assert any(value.grad is not None and "lora" in key for key, value in model.named_parameters())


def test_virtual_tokens_fall_back_to_dense() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    student = losses.loss_model(peft.get_peft_model(tiny("gpt2", tied=True), config))
    assert not student.fused
    assert "virtual tokens" in student.why_dense
