"""Model shapes for three sizes of machine, built with random weights: no hub is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

_GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """What is measured on a machine of some size.

    Attributes:
        name: as the table says it.
        memory: bytes of free memory that each of its devices must have.
        devices: GPUs; the dump's teacher is spread over them, all else runs on the first.
        teacher: is dumped.
        student: is trained; ``online`` is the teacher in its memory in online distillation.
        characters: of text that is dumped; about 4 make a token.
        batch_tokens: of a pass of the teacher.
        step_tokens: of a training step.
    """

    name: str
    memory: int
    devices: int
    teacher: PretrainedConfig
    student: PretrainedConfig
    online: PretrainedConfig
    characters: int
    batch_tokens: int
    step_tokens: int


def _shape(kind: type[Any], vocab_size: int, *sizes: int, tied: bool) -> Any:
    """A configuration; ``sizes``: width, feed-forward width, layers, heads, key-value heads."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shape = dict(zip(names, sizes, strict=True))
    return kind(vocab_size=vocab_size, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0, **shape)


# The shapes of models that people know, the 7B one with the vocabulary of its smaller students. The weights are random.
_SMOLLM2_135M = _shape(LlamaConfig, 49_152, 576, 1_536, 30, 9, 3, tied=True)
_SMOLLM2_360M = _shape(LlamaConfig, 49_152, 960, 2_560, 32, 15, 5, tied=True)
_QWEN_HALF_B = _shape(Qwen2Config, 151_936, 896, 4_864, 24, 14, 2, tied=True)
_QWEN_1B = _shape(Qwen2Config, 151_936, 1_536, 8_960, 28, 12, 2, tied=True)
_QWEN_7B = _shape(Qwen2Config, 151_936, 3_584, 18_944, 28, 28, 4, tied=False)
_QWEN_14B = _shape(Qwen2Config, 152_064, 5_120, 13_824, 48, 40, 8, tied=False)
_LLAMA_3B = _shape(LlamaConfig, 128_256, 3_072, 8_192, 28, 24, 8, tied=True)
_LLAMA_70B = _shape(LlamaConfig, 128_256, 8_192, 28_672, 80, 64, 8, tied=False)
_TINY = _shape(LlamaConfig, 2_048, 64, 128, 2, 4, 2, tied=True)

#: Smallest first.
MACHINES = (
    Machine("8 GiB", 6 * _GIB, 1, _QWEN_HALF_B, _SMOLLM2_135M, _SMOLLM2_360M, 400_000, 4_096, 1_024),
    Machine("24 GiB", 21 * _GIB, 1, _LLAMA_3B, _QWEN_HALF_B, _QWEN_1B, 800_000, 8_192, 1_024),
    Machine("80 GiB", 70 * _GIB, 1, _QWEN_14B, _QWEN_1B, _QWEN_7B, 1_600_000, 16_384, 2_048),
    Machine("8 x 80 GiB", 70 * _GIB, 8, _LLAMA_70B, _QWEN_1B, _QWEN_7B, 800_000, 16_384, 2_048),
)
TINY = Machine("tiny, on a CPU", 0, 1, _TINY, _TINY, _TINY, 2_000, 512, 128)


def machine_for(memory: int, devices: int) -> Machine | None:
    """The largest machine that so many devices with so much free memory each are; None if they are too small."""
    fitting = [machine for machine in MACHINES if machine.memory <= memory and machine.devices <= devices]
    return fitting[-1] if fitting else None


def build(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights, made where it will run."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def build_spread(config: PretrainedConfig, devices: list[torch.device], dtype: torch.dtype) -> Any:
    """The same with its layers spread over devices, as ``--device-map auto`` would load it.

    For Llama and Qwen2 whose output layer is not tied to the embedding, which stands on another device.
    """
    from accelerate import dispatch_model

    assert not config.tie_word_embeddings

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    first, last, count = devices[0], devices[-1], config.num_hidden_layers
    places = {f"model.layers.{index}": devices[index * len(devices) // count] for index in range(count)}
    places |= {"model.embed_tokens": first, "model.rotary_emb": first, "model.norm": last, "lm_head": last}
    torch.manual_seed(0)
    for name, device in places.items():
        module = model.get_submodule(name).to_empty(device=device)
        for value in module.parameters():
            torch.nn.init.normal_(value, std=0.02) if value.dim() > 1 else torch.nn.init.ones_(value)
    # What isn't a weight is computed again, as it had no values on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(first)
    return dispatch_model(model, places, force_hooks=True).requires_grad_(False)
