"""Tiny random models of any architecture, with weights that spread: a wrong context must show in the logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

Weights = dict[str, torch.Tensor]


def spread(model: PreTrainedModel, std: float = 0.3) -> PreTrainedModel:
    """Matrices from a normal distribution; vectors of equal numbers, biases and gates among them, moved apart."""
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(std=std)
            else:
                value.add_(torch.randn_like(value), alpha=0.1)
    return model


def random_llama(vocab_size: int, *, layers: int = 2, bias: bool = False) -> LlamaForCausalLM:
    """A Llama of width 32; with ``bias`` its output layer has one."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
    )
    if bias:
        model.lm_head = torch.nn.Linear(32, vocab_size)
    return model


def save_tiny(
    place: Path, tokenizer_dir: Path, config: PretrainedConfig, automatic: Any = AutoModelForCausalLM
) -> Path:
    """A model of ``config`` in a directory of its own, with a tokenizer."""
    torch.manual_seed(0)
    spread(automatic.from_config(config)).save_pretrained(place)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(place)
    return place


def change_weights(place: Path, change: Callable[[Weights], Any], holding: str = "") -> None:
    """Change the tensors of a directory's file of weights: of several, of the one that holds a tensor of that name."""
    for path in sorted(place.glob("*.safetensors")):
        weights = load_file(path)
        if not holding or holding in weights:
            change(weights)
            save_file(weights, path, metadata={"format": "pt"})
            return
    raise KeyError(holding)


def shard(place: Path) -> None:
    """Save a directory's model again in several files, with an index."""
    AutoModelForCausalLM.from_pretrained(place).save_pretrained(place, max_shard_size="30KB")
    (place / "model.safetensors").unlink()
    assert (place / "model.safetensors.index.json").exists()


def quantise(place: Path, block: int = 16) -> None:
    """Turn the projections of a directory's model to blocks of 8-bit floats with a scale each, as DeepSeek's are."""

    def blocks(weights: Weights) -> None:
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            rows, columns = weights[name].shape
            parts = weights[name].reshape(rows // block, block, columns // block, block)
            scales = parts.abs().amax((1, 3)) / 448
            weights[name] = (parts / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scales

    change_weights(place, blocks)
    config = json.loads((place / "config.json").read_text())
    kind = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": kind}))


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
    "model.layers": "blk",
}


def write_gguf(place: Path, out: Path, change: Callable[[Weights], Any] = lambda weights: None) -> Path:
    """A Llama with a tied head and a byte-level tokenizer, from its directory, as a GGUF file of 32-bit floats.

    Rows beyond the tokenizer's words get names, as llama.cpp's converter gives them.
    """
    import gguf

    model = AutoModelForCausalLM.from_pretrained(place)
    config, weights = model.config, dict(model.state_dict())
    del weights["lm_head.weight"]
    change(weights)
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads((place / "tokenizer.json").read_text())["model"]
    words = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    words += [f"[PAD{number}]" for number in range(len(words), config.vocab_size)]
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 5 if word.startswith("[PAD") else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_eos_token_id(0)
    for name, value in weights.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        numbers = value.numpy()
        for part, count in heads.items():
            if f"{part}.weight" in name:  # GGUF interleaves what rotary embeddings turn together
                rows, columns = numbers.shape
                numbers = numbers.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        for long, short in _GGUF_NAMES.items():
            name = name.replace(long, short)
        writer.add_tensor(name, np.ascontiguousarray(numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
