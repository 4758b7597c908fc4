"""Memory and operations by formula, against what torch really holds and counts on tiny models."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma4TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from logitcache import LogitCacheError, TrainConfig
from logitcache.models.cost import (
    Arithmetic,
    activation_bytes,
    estimate_of,
    forward_operations,
    layer_bytes,
    training_operations,
)
from logitcache.models.hardware import Hardware, parse_hardware
from logitcache.models.sizes import Sizes, sizes_of
from logitcache.train.estimate import Shape, estimate_training, memory_of

GIB = 1 << 30
ROWS, TOKENS = 4, 64
#: Proportions of SmolLM2-135M and of Qwen2.5-0.5B, a quarter and an eighth as wide.
SMOLLM2 = LlamaConfig(
    vocab_size=512, hidden_size=144, intermediate_size=384, num_hidden_layers=5, num_attention_heads=9,
    num_key_value_heads=3, tie_word_embeddings=True,
)  # fmt: skip
QWEN2 = Qwen2Config(
    vocab_size=600, hidden_size=112, intermediate_size=608, num_hidden_layers=4, num_attention_heads=14,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
PLAIN: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
OTHERS = [
    GPT2Config(vocab_size=512, n_embd=64, n_layer=3, n_head=4),
    Qwen3Config(**PLAIN),
    Gemma2Config(**PLAIN),
    MixtralConfig(**PLAIN, num_local_experts=4, num_experts_per_tok=2),
]
RUN = TrainConfig(cache="c", student="s", out="o")


def empty(config: PretrainedConfig, **more: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **more)


def name(config: Any) -> str:
    return str(config.model_type)


def shape(**more: Any) -> Shape:
    base = Shape(
        rows=8, row_tokens=2048, arithmetic="mixed", masked=False, eager=False, checkpointing=False, dense=False,
        top_k=64, ranks=1, sharded=False, device_memory=80 * GIB,
    )  # fmt: skip
    return replace(base, **more)


@pytest.mark.parametrize("lora_rank", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [SMOLLM2, QWEN2, *OTHERS], ids=name)
def test_weights_gradients_and_optimizer_to_the_byte(
    config: PretrainedConfig, dtype: torch.dtype, lora_rank: int | None
) -> None:
    def adapted(model: Any) -> Any:
        if lora_rank is None:
            return model
        lora = LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, lora)

    sizes = sizes_of(adapted(empty(config, dtype=dtype)))
    model = adapted(AutoModelForCausalLM.from_config(config, dtype=dtype))
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad])
    model(input_ids=torch.arange(8)[None] + 1, labels=torch.arange(8)[None] + 1).loss.backward()
    for value in model.parameters():  # experts that no token went to
        if value.requires_grad and value.grad is None:
            value.grad = torch.zeros_like(value)
    optimizer.step()
    memory = memory_of(sizes, shape())
    assert memory["weights"] == sum(value.nbytes for value in model.parameters())
    assert memory["gradients"] == sum(value.grad.nbytes for value in model.parameters() if value.grad is not None)
    assert memory["optimizer"] == sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )


def kept_bytes(model: Any, arithmetic: Arithmetic, position_ids: torch.Tensor | None = None) -> int:
    """What torch keeps for the backward pass of the body, without the weights themselves."""
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    precision: Any = contextlib.nullcontext()
    if arithmetic == "mixed":
        precision = torch.autocast("cpu", dtype=torch.bfloat16)
    ids = torch.randint(0, 500, (ROWS, TOKENS))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision:
        held = model.model(input_ids=ids, position_ids=position_ids, use_cache=False)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del held
    return total


def real(config: PretrainedConfig, arithmetic: Arithmetic, **more: Any) -> Any:
    dtype = torch.bfloat16 if arithmetic == "half" else torch.float32
    # A copy, as the choice of attention is written into the configuration.
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, **more).train()


def estimated(sizes: Sizes, arithmetic: Arithmetic, **more: Any) -> int:
    copies = sizes.cast_bytes if arithmetic == "mixed" and not more.get("checkpointing") else 0
    return ROWS * TOKENS * activation_bytes(sizes, arithmetic, TOKENS, **more) + copies


@pytest.mark.parametrize("arithmetic", ["fp32", "mixed", "half"])
@pytest.mark.parametrize("config", [SMOLLM2, QWEN2], ids=name)
def test_activations_of_usual_models_within_five_percent(config: PretrainedConfig, arithmetic: Arithmetic) -> None:
    model = real(config, arithmetic)
    assert estimated(sizes_of(model), arithmetic) == pytest.approx(kept_bytes(model, arithmetic), rel=0.05)


@pytest.mark.parametrize("arithmetic", ["fp32", "mixed", "half"])
@pytest.mark.parametrize("config", [SMOLLM2, QWEN2], ids=name)
def test_activations_of_packed_rows_and_of_eager_attention(config: PretrainedConfig, arithmetic: Arithmetic) -> None:
    packed = torch.cat([torch.arange(TOKENS - 24), torch.arange(24)]).expand(ROWS, -1)
    model = real(config, arithmetic)
    found = kept_bytes(model, arithmetic, packed)
    assert estimated(sizes_of(model), arithmetic, masked=True) == pytest.approx(found, rel=0.05)
    model = real(config, arithmetic, attn_implementation="eager")
    found = kept_bytes(model, arithmetic)
    assert estimated(sizes_of(model), arithmetic, eager=True) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("arithmetic", ["fp32", "mixed", "half"])
@pytest.mark.parametrize("config", [SMOLLM2, QWEN2], ids=name)
def test_checkpointing_keeps_the_layers_inputs(config: PretrainedConfig, arithmetic: Arithmetic) -> None:
    model = real(config, arithmetic)
    sizes = sizes_of(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = kept_bytes(model, arithmetic)
    # One layer is computed again at a time; its activations appear in the backward pass only.
    layer = layer_bytes(sizes, arithmetic, TOKENS, masked=False, eager=False)
    assert estimated(sizes, arithmetic, checkpointing=True) - ROWS * TOKENS * layer == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("arithmetic", ["fp32", "mixed", "half"])
@pytest.mark.parametrize("config", OTHERS[1:], ids=name)
def test_activations_of_other_models_within_a_factor(config: PretrainedConfig, arithmetic: Arithmetic) -> None:
    model = real(config, arithmetic)
    assert 1 / 1.5 < estimated(sizes_of(model), arithmetic) / kept_bytes(model, arithmetic) < 1.5


@pytest.mark.parametrize("config", [SMOLLM2, QWEN2, OTHERS[1], OTHERS[2]], ids=name)
def test_operations_are_what_torch_counts(config: PretrainedConfig) -> None:
    model = real(config, "fp32", attn_implementation="eager")
    sizes, ids = sizes_of(model), torch.randint(0, 500, (ROWS, TOKENS))
    with FlopCounterMode(display=False) as counter:
        out = model.model(input_ids=ids, use_cache=False).last_hidden_state
    forward = counter.get_total_flops()
    # Eager attention computes the half above the diagonal too.
    assert forward == ROWS * TOKENS * (2 * forward_operations(sizes, TOKENS) - 2 * sizes.active)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    head = 2.0 * sizes.vocab_size * sizes.width
    body = training_operations(sizes, 0, dense=False) - head
    attention = 2 * (training_operations(sizes, TOKENS, dense=False) - training_operations(sizes, 0, dense=False))
    assert forward + counter.get_total_flops() == ROWS * TOKENS * (body + attention)
    assert body == 6 * sizes.active
    assert training_operations(sizes, 0, dense=False, checkpointing=True) - head == 8 * sizes.active


def test_a_token_goes_to_some_experts_only() -> None:
    whole, some = (
        sizes_of(empty(MixtralConfig(**PLAIN, num_local_experts=4, num_experts_per_tok=used))) for used in (4, 1)
    )
    assert whole.parameters == some.parameters
    experts = 3 * 3 * 128 * 384  # layers, matrices, D, I
    assert whole.active - some.active == 3 * experts


@pytest.mark.parametrize("config", [Gemma3nTextConfig(), Gemma4TextConfig()], ids=name)
def test_widths_that_differ_between_layers(config: PretrainedConfig) -> None:
    sizes = sizes_of(empty(config))
    assert sizes.active > 10**8
    assert min(sizes.inner, sizes.attention_width, sizes.key_width, sizes.layers) > 0


def test_what_doesnt_fit_and_what_to_change() -> None:
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    sizes = sizes_of(empty(config))
    assert sizes.parameters == 8_030_261_248

    def on(text: str, **more: Any) -> Any:
        return estimate_training(RUN, sizes, shape(**more), parse_hardware(text), 32_768, 2048)

    roomy = on("400GiB,100TFLOPS")
    assert roomy.fits is True
    assert roomy.advice == ()
    assert roomy.rate == pytest.approx(1e14 / roomy.operations)
    assert roomy.memory["weights"] + roomy.memory["gradients"] + roomy.memory["optimizer"] == pytest.approx(
        16 * sizes.parameters, rel=1e-6
    )
    assert on("180GiB").advice[0].startswith("--micro-batch-size 1 (")
    assert on("180GiB", row_tokens=8192).advice[0].startswith("--trainer activation_checkpointing=true --micro-batch")
    assert on("80GiB").advice[0].startswith("share it among 2 such devices: --trainer fsdp=true")
    shared = estimate_of(
        memory_of(sizes, shape(rows=1, checkpointing=True, ranks=2, sharded=True)), sizes, parse_hardware("80GiB"), 1
    )
    assert shared.fits
    tenth = Hardware(memory=round(shared.total * 1.09))
    assert estimate_of(shared.memory, sizes, tenth, 1).fits is False
    assert estimate_of(shared.memory, sizes, Hardware(), 1).fits is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80GiB", Hardware(80 * GIB, 1, None, elsewhere=True)),
        ("8x80gib", Hardware(80 * GIB, 8, None, elsewhere=True)),
        ("2 x 24GB, 82.6TFLOPS", Hardware(24 * 10**9, 2, 82.6, elsewhere=True)),
    ],
)
def test_hardware_in_words(text: str, expected: Hardware) -> None:
    assert parse_hardware(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "80", "400TFLOPS", "0x80GiB", "8x80GiB,fast", "0GiB", "8x80GiB,0TFLOPS", "8x80KiB", "8x80GiB,8x40GiB",
        "80GiB,400TFLOPS,300TFLOPS", f"{'9' * 5000}x80GiB", f"{'9' * 400}GiB", f"80GiB,{'9' * 400}TFLOPS",
    ],
)  # fmt: skip
def test_hardware_that_cant_be_read(text: str) -> None:
    """Also what names a number twice, and numbers too large for any machine."""
    with pytest.raises(LogitCacheError, match="write 80GiB, 8x80GiB or 8x80GiB,400TFLOPS") as caught:
        parse_hardware(text)
    assert len(str(caught.value).splitlines()) == 1
