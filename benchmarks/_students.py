"""Students for the measurements of s-LD: the teacher without some of its layers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: Layers that a student lacks, ascending.
Dropped = tuple[int, ...]


@contextmanager
def without(model: Any, dropped: Dropped) -> Iterator[None]:
    """The model with fewer layers, for the time being."""
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layer for index, layer in enumerate(layers) if index not in dropped)
    model.config.num_hidden_layers = len(model.model.layers)
    try:
        yield
    finally:
        model.model.layers = layers
        model.config.num_hidden_layers = len(layers)


def drawn(count: int, seed: int, layers: int) -> list[Dropped]:
    """As many students with one layer less as with two, and so on up to five; never the first two or the last."""
    generator, students = random.Random(seed), set[Dropped]()
    while len(students) < count:
        students.add(tuple(sorted(generator.sample(range(2, layers - 1), len(students) % 5 + 1))))
    return sorted(students, key=lambda dropped: (len(dropped), dropped))


@torch.no_grad()
def pruned(model: Any, count: int, ids_BT: Tensor) -> list[Dropped]:
    """Students as people make them: each lacks one layer more than the one before, the one whose loss costs least.

    Args:
        model: the teacher.
        count: how many.
        ids_BT: text on which the KL to the teacher decides.
    """

    def log_probs() -> Tensor:
        logits_BTV: Tensor = model(input_ids=ids_BT, use_cache=False).logits[:, 1:]
        return logits_BTV.log_softmax(2)

    teacher_BTV, layers = log_probs(), model.config.num_hidden_layers
    students: list[Dropped] = []
    for _ in range(count):
        before = students[-1] if students else ()
        distances: dict[Dropped, float] = {}
        for layer in sorted(set(range(layers)) - set(before)):
            dropped = tuple(sorted((*before, layer)))
            with without(model, dropped):
                distances[dropped] = float((teacher_BTV.exp() * (teacher_BTV - log_probs())).sum(2).mean())
        students.append(min(distances, key=lambda dropped: distances[dropped]))
        print(f"pruned to {layers - len(students[-1])} layers: without {students[-1]}", file=sys.stderr)
    return students
