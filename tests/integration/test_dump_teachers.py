"""Teachers of all kinds: heads that change their logits, half precision, spread over devices, GGUF files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from dump_tools import TINY, check_every_row
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
)

import logitcache as lc

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory, heldout_text: Path) -> Path:
    """Twenty sentences, one per row."""
    path = tmp_path_factory.mktemp("rows") / "text.jsonl"
    rows = heldout_text.read_text().split(".")[:20]
    path.write_text("".join(json.dumps({"text": text.strip()}) + "\n" for text in rows))
    return path


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision(tiny_llama_dir: Path, sentences: Path, tmp_path: Path, dtype: str) -> None:
    cache = lc.dump(teacher=str(tiny_llama_dir), data=[str(sentences)], out=tmp_path / "out", dtype=dtype, **TINY)
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert cache.manifest.provenance.teacher.dtype == str(torch_dtype).removeprefix("torch.")
    check_every_row(cache, tiny_llama_dir, noise=0.02, dtype=torch_dtype)


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ARCHITECTURES = {
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0),
    "cohere": CohereConfig(**SMALL, num_key_value_heads=2, logit_scale=0.25),
    "granite": GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=0.25),
    "phi": PhiConfig(**SMALL, num_key_value_heads=2),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_heads_that_change_their_logits(tiny_llama_dir: Path, sentences: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    config = ARCHITECTURES[name]
    config.vocab_size, config.initializer_range = len(tokenizer), 0.5
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 2
    model = AutoModelForCausalLM.from_config(config)
    if name == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    cache = lc.dump(teacher=str(tmp_path / name), data=[str(sentences)], out=tmp_path / "out", **TINY)
    check_every_row(cache, tmp_path / name, noise=2e-3)


def test_device_map(tiny_llama_dir: Path, sentences: Path, tmp_path: Path) -> None:
    cache = lc.dump(teacher=str(tiny_llama_dir), data=[str(sentences)], out=tmp_path / "out", device_map="auto", **TINY)
    check_every_row(cache, tiny_llama_dir, noise=1e-4)


@pytest.mark.skipif("LOGITCACHE_GGUF" not in os.environ, reason="set LOGITCACHE_GGUF to a small .gguf file")
def test_gguf_teacher(heldout_text: Path, tmp_path: Path) -> None:
    """A GGUF file, and the same weights saved as an ordinary directory, give the same targets."""
    from logitcache.models.identity import find_teacher
    from logitcache.models.teacher import load_model, load_tokenizer

    path = os.environ["LOGITCACHE_GGUF"]
    text = tmp_path / "address.txt"
    text.write_text(heldout_text.read_text()[:1000])
    cache = lc.dump(teacher=path, data=[str(text)], out=tmp_path / "out", max_length=128)
    assert cache.manifest.provenance.teacher.name == Path(path).stem
    files = find_teacher(path)
    load_model(files, dtype=torch.float32, device=torch.device("cpu")).save_pretrained(tmp_path / "saved")
    load_tokenizer(files).save_pretrained(tmp_path / "saved")
    check_every_row(cache, tmp_path / "saved", noise=2e-3)
