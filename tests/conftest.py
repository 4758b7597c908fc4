"""Models and text that more than one test module uses. Nothing is downloaded here: `make teacher` fetches the model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

REPO = Path(__file__).resolve().parent.parent
EXAMPLES = REPO / "examples" / "data"

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The real teacher, SmolLM2-135M-Instruct, as a transformers directory."""
    found = Path(os.environ.get("LOGITCACHE_TEACHER", REPO / ".models" / "SmolLM2-135M-Instruct"))
    if not (found / "config.json").exists():
        pytest.skip("no teacher: run `make teacher`, or set LOGITCACHE_TEACHER to a SmolLM2-135M-Instruct directory")
    return found


@pytest.fixture(scope="session")
def tiny_llama_dir(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 64 with SmolLM2's tokenizer: fast, and real in every other respect."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def heldout_text() -> Path:
    """The held-out address of the demo, about 4,000 tokens of English."""
    return EXAMPLES / "heldout" / "1964_lyndon_b_johnson.txt"
