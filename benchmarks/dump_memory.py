"""Memory that a dump takes beyond the teacher, at a vocabulary of 262,144 and 16,384 tokens a batch.

The teacher is a random Gemma-3-shaped model, capped logits and all. Whole logits of that batch would take
16 GiB in fp32.

    python -m benchmarks.dump_memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from benchmarks._memory import peak_mib, reset_peak, resident_mib
from benchmarks._teacher import REPO
from logitcache.data import TokenSequence
from logitcache.engines.batches import pad
from logitcache.engines.transformers_engine import TransformersEngine

VOCAB_SIZE = 262_144


def make_teacher(top_k: int, batch_tokens: int) -> TransformersEngine:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        final_logit_softcapping=30.0,
    )
    model = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    return TransformersEngine(model, top_k=top_k, batch_tokens=batch_tokens)


def measure(length: int, tokens: int, top_k: int) -> dict[str, float]:
    """Peak over the resident memory with the model loaded, in MiB, for one batch of ``tokens``."""
    teacher = make_teacher(top_k, tokens)
    rng = np.random.default_rng(0)
    mask_L = np.arange(length) < length - 1
    batch = [
        TokenSequence(rng.integers(0, VOCAB_SIZE, length).astype(np.uint32), mask_L) for _ in range(tokens // length)
    ]
    list(teacher.score([TokenSequence(batch[0].token_ids_L[:16], mask_L[-16:])]))  # kernels and pools that stay
    before = resident_mib()
    reset_peak()
    ((_, targets),) = teacher.score(batch)
    peak = peak_mib()
    assert len(targets) == tokens - len(batch)
    reset_peak()
    after = resident_mib()
    with torch.inference_mode():
        teacher.head.body(input_ids=pad(batch)[0], use_cache=False)
    return {
        "model_and_program_mib": before,
        "peak_mib": peak,
        "extra_mib": peak - before,
        "extra_of_the_body_alone_mib": peak_mib() - after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--length", type=int, default=2_048)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--role", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        print(json.dumps(measure(arguments.length, arguments.batch_tokens, arguments.top_k)))
        return
    command = [sys.executable, "-m", "benchmarks.dump_memory", "--role", *sys.argv[1:]]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPO)
    whole = arguments.batch_tokens * VOCAB_SIZE * 4 / 2**20
    print(json.dumps({"vocab_size": VOCAB_SIZE, "whole_logits_mib": whole} | json.loads(done.stdout), indent=2))


if __name__ == "__main__":
    main()
