"""Share of padding in the tokens that a student computes: rows in order, and grouped by length.

A count, not a timing. The rows are the sentences of the repository's example texts, in the order of ten epochs. The
last column has the tokens that the slowest rank of each step computes, relative to rows in order.
Needs the tokenizer of the demo's teacher (`make teacher`).

    python -m benchmarks.padding
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from benchmarks._markdown import table
from benchmarks._teacher import DATA, TEACHER
from logitcache.stream.division import divide
from logitcache.stream.layout import Layout
from logitcache.stream.order import Order, ShardSizes
from logitcache.stream.rows import RowPlan

EPOCHS = 10
#: Ranks, rows of a global batch, rows of a micro-batch, tokens of a packed row.
CASES = ((1, 16, 8, None), (1, 64, 8, None), (8, 256, 8, None), (8, 64, 2, None), (8, 64, 8, None), (1, 16, 8, 256))


def sentences(teacher: Path) -> list[int]:
    """Tokens of each sentence."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    texts = [path.read_text(encoding="utf-8") for path in sorted(DATA.glob("*/*.txt"))]
    found = [sentence for text in texts for sentence in re.split(r"(?<=[.?!])\s+", text) if sentence]
    return [len(tokens) for tokens in tokenizer(found)["input_ids"]]


def batches(lengths: list[int], rows: int, pack_tokens: int | None) -> Iterator[list[int]]:
    """The lengths of the rows of each global batch of some epochs."""
    sizes = ShardSizes("sha256:sentences", np.array([len(lengths)]), np.array([sum(lengths)]))
    every = np.array(lengths, dtype=np.int32)
    for epoch in range(EPOCHS):
        plan = RowPlan(Order().epoch(sizes, epoch), pack_tokens, lambda shard: every)
        found = [sum(lengths[place] for _, place in row.samples) for row in plan.iterate()]
        yield from (found[start : start + rows] for start in range(0, len(found), rows))


def computed(lengths: list[int], layout: Layout) -> tuple[int, int]:
    """Tokens that all ranks compute, padding included; and the slowest rank of each step, summed over the steps."""
    whole = slowest = 0
    for rows in batches(lengths, layout.batch_size, layout.pack_tokens):
        ranks = [
            sum(len(part) * max((rows[row] for row in part), default=0) for part in parts)
            for parts in divide(rows, layout)
        ]
        whole, slowest = whole + sum(ranks), slowest + max(ranks)
    return whole, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=TEACHER)
    lengths = sentences(parser.parse_args().teacher)
    real = EPOCHS * sum(lengths)
    print(f"{len(lengths)} sentences of {min(lengths)} to {max(lengths)} tokens, median {np.median(lengths):.0f}\n")
    rows = []
    for ranks, batch, micro, pack_tokens in CASES:
        (plain, slow), (grouped, faster) = (
            computed(lengths, Layout(batch, micro, pack_tokens, world_size=ranks, group_by_length=grouped))
            for grouped in (False, True)
        )
        sizes = [str(size) for size in (ranks, batch, micro, pack_tokens or "no")]
        rows.append([*sizes, f"{1 - real / plain:.1%}", f"{1 - real / grouped:.1%}", f"{faster / slow:.2f}x"])
    header = ["ranks", "batch", "micro-batch", "packed", "padding", "padding, grouped", "slowest rank, grouped"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
