"""Train a student from a cache in a plain PyTorch loop: the stream, a loss, the fused head, and nothing else.

python examples/plain_loop.py --cache demo-out/train.cache --student demo-out/student-before --out trained
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import logitcache as lc


def train(
    cache_path: str, student_path: str, out: str, *, loss: str, steps: int, rate: float, batch_size: int
) -> list[float]:
    """One pass or more over the cache; returns the loss of each step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cache = lc.open(cache_path)
    model = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float32).to(device).train()

    # Finds the head of the model, its bias, soft cap and scale. `why_dense` says why if all logits are computed.
    student = lc.losses.loss_model(model, loss)
    if not student.fused:
        print(student.why_dense)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=1e-4)

    history: list[float] = []
    for batch in lc.stream(cache, batch_size=batch_size, seed=0, epochs=None):
        value, seen = student(batch.to(device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        history.append(value.item())
        coverage = "" if seen.coverage is None else f"  coverage {seen.coverage:.3f}"
        print(f"step {len(history):4}  loss {history[-1]:.4f}{coverage}")
        if len(history) == steps:
            break

    if seen.coverage is not None and (advice := lc.losses.metrics.coverage_advice(float(seen.coverage), cache.top_k)):
        print(advice)
    model.save_pretrained(out)
    cache.load_tokenizer().save_pretrained(out)
    return history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", required=True, help="a cache's directory or URL")
    parser.add_argument("--student", required=True, help="a model's directory or hub id")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--loss", default="bild", help="a loss or a mix, such as bild=1.0,cross_entropy=0.1")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    train(
        options.cache,
        options.student,
        str(options.out),
        loss=options.loss,
        steps=options.steps,
        rate=options.rate,
        batch_size=options.batch_size,
    )


if __name__ == "__main__":
    main()
